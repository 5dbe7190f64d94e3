// Products with a layer's weights, and GEGLU's gate on them, in bfloat16 for processors with AVX-512 BF16.
//
// oneDNN's are hardly slower on the largest matrices, but up to a third on small ones, and it needs two products
// for a gate, with the first one's result written out and read again. Here each panel of weights has 32 columns
// of the values and the same 32 of the gates, so that both are in registers: nothing is rounded in between.
// Weights are packed as the instruction needs them (VNNI): two neighbours of a column in one 32-bit lane.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "avx512.h"

namespace {

constexpr int LANES = 16;
constexpr int PANEL = 64;                 // columns at once
constexpr int ROWS = 6;                   // rows at once: with a panel, 24 sums in the 32 registers
constexpr int64_t CACHED = 256 * 1024;    // bytes of rows that are reused panel after panel, half of an L2 cache
constexpr int64_t AHEAD = 16 * PANEL;     // how many pairs of weights ahead are prefetched

inline __m512bh pair(const uint16_t* at) {
  int32_t both;
  std::memcpy(&both, at, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}

// x times the normal distribution function of x; Abramowitz and Stegun 7.1.26, within 2e-7, with an
// exponential within 3e-6.
inline __m512 gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 y = _mm512_set1_ps(1.061405429f);
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-1.453152027f));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f));
  y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f));
  const __m512 falling = exp2_of(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f)));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(y, t), _mm512_mul_ps(falling, _mm512_set1_ps(0.5f)));
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, positive, one, tail));
}

inline __m512 start(const uint16_t* bias) { return bias == nullptr ? _mm512_setzero_ps() : widened(bias); }

inline void write(uint16_t* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

struct Columns {
  const uint16_t *weights, *bias, *gate_bias;
  int64_t depth, stride;  // of the rows that are read, and of those that are written
};

// Some rows times some columns of a panel; if GATED, the first half of these times the GELU of the second.
template <int COUNT, int VECTORS, bool GATED>
void product(const uint16_t* x, const Columns& p, uint16_t* out) {
  constexpr int VALUES = GATED ? VECTORS / 2 : VECTORS;
  __m512 sum[COUNT][VECTORS];
#pragma GCC unroll 4
  for (int c = 0; c < VECTORS; ++c) {
    const uint16_t* bias = c < VALUES ? p.bias : p.gate_bias;
    const __m512 first = start(bias == nullptr ? bias : bias + c % VALUES * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) sum[r][c] = first;
  }
  for (int64_t k = 0; k < p.depth; k += 2) {
    const uint16_t* weights = p.weights + k * PANEL;
    __m512bh weight[VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c) {
      const uint16_t* at = weights + 2 * (c / VALUES * (PANEL / 2) + c % VALUES * LANES);
      weight[c] = (__m512bh)_mm512_loadu_si512(at);
      _mm_prefetch(reinterpret_cast<const char*>(at + 2 * AHEAD), _MM_HINT_T0);
    }
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
      const __m512bh both = pair(x + r * p.depth + k);
#pragma GCC unroll 4
      for (int c = 0; c < VECTORS; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], both, weight[c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < VALUES; ++c) {
      const __m512 value = sum[r][c];
      write(out + r * p.stride + c * LANES, GATED ? _mm512_mul_ps(value, gelu(sum[r][c + VECTORS - VALUES])) : value);
    }
}

using Product = void (*)(const uint16_t*, const Columns&, uint16_t*);
template <int COUNT>
constexpr Product BY_WIDTH[2][4] = {
    {product<COUNT, 1, false>, product<COUNT, 2, false>, product<COUNT, 3, false>, product<COUNT, 4, false>},
    {product<COUNT, 2, true>, product<COUNT, 4, true>}};
constexpr const Product (*PRODUCTS[])[4] = {BY_WIDTH<1>, BY_WIDTH<2>, BY_WIDTH<3>,
                                            BY_WIDTH<4>, BY_WIDTH<5>, BY_WIDTH<6>};

}  // namespace

// Columns must be multiples of the first; weights are laid out in panels of the second.
extern "C" int lanes() { return LANES; }
extern "C" int panel() { return PANEL; }

// x (rows, depth) and result (rows, columns), dense; weights (panels, depth / 2, PANEL, 2) with anything after the
// last column; bias (columns, then the gates' where `gated`) or null. All bfloat16; depth is even, columns a multiple
// of 16.
extern "C" void multiply(const uint16_t* x, const uint16_t* weights, const uint16_t* bias, uint16_t* out, int64_t rows,
                         int64_t depth, int columns, int gated, int threads) {
  const int width = gated ? PANEL / 2 : PANEL, panels = (columns + width - 1) / width;
  const int64_t parts = (4 * threads + panels - 1) / panels;  // of the rows: four per thread
  const int64_t some = std::min(CACHED / (2 * depth), (rows + parts - 1) / parts);
  const int64_t each = std::max<int64_t>(1, (some + ROWS - 1) / ROWS) * ROWS, groups = (rows + each - 1) / each;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t work = 0; work < groups * panels; ++work) {
    const int64_t panel = work % panels, first = work / panels * each, last = std::min(rows, first + each);
    const int64_t column = panel * width;
    const int vectors = int(std::min<int64_t>(width, columns - column)) / LANES;
    const uint16_t* own_bias = bias == nullptr ? bias : bias + column;
    const uint16_t* gate = bias == nullptr ? bias : own_bias + columns;
    const Columns from{weights + panel * depth * PANEL, own_bias, gate, depth, columns};
    for (int64_t row = first; row < last; row += ROWS)
      PRODUCTS[std::min<int64_t>(ROWS, last - row) - 1][gated][vectors - 1](x + row * depth, from,
                                                                            out + row * columns + column);
  }
}
