// Attention in bfloat16 for processors with AVX-512 BF16: softmax(q k' * scale) v.
//
// torch's own (flash attention too) spends most of its time in small products without the bfloat16
// instructions: 75 GFLOP/s of 434 on one Zen 5 core, for SD 1.5's 4096 tokens. Here keys and values
// are first packed as those instructions need them (VNNI): two neighbours in one 32-bit lane. Then, as
// in flash attention (Dao et al. 2022, arXiv 2205.14135), a tile of rows goes through the keys block by
// block. Logits, sums and results are float32; only the softmax weights are rounded, as torch does.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "avx512.h"

namespace {

constexpr int ROWS = 8;        // of a tile
constexpr int GROUP = 32;      // keys of one product: two vectors of float32
constexpr int BLOCK = 256;     // keys between two updates of the maximum; their logits stay in the L1 cache
constexpr int WIDEST = 512;    // of a head: the UNet has 40, 80 and 160, the decoder 512
constexpr float NOTHING = -1e30f;  // logit of a padding key; -inf would give inf - inf

inline __m512bh pair(const void* at) {
  int32_t both;
  std::memcpy(&both, at, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}

// (keys, width) -> groups of 32 keys, each (width / 2) x 32 pairs of neighbouring columns.
void pack_keys(const uint16_t* from, int64_t stride, int keys, int width, uint32_t* to) {
  for (int group = 0; group < keys; group += GROUP)
    for (int column = 0; column < width; column += 2)
      for (int key = group; key < group + GROUP; ++key, ++to) {
        *to = 0;
        if (key < keys) std::memcpy(to, from + key * stride + column, sizeof *to);
      }
}

// (keys, width) -> (keys / 2) x columns pairs of neighbouring keys, padded with zeros.
void pack_values(const uint16_t* from, int64_t stride, int keys, int padded_keys, int width, int columns,
                 uint16_t* to) {
  for (int key = 0; key < padded_keys; key += 2)
    for (int column = 0; column < columns; ++column)
      for (int one = key; one < key + 2; ++one, ++to)
        *to = one < keys && column < width ? from[one * stride + column] : 0;
}

// Logits of a tile of rows with one group of keys.
void logits_of(const uint16_t* const* rows, const uint32_t* keys, int width, float* to) {
  __m512 sums[ROWS][2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  for (int column = 0; column < width; column += 2, keys += GROUP) {
    const __m512bh low = (__m512bh)_mm512_loadu_si512(keys);
    const __m512bh high = (__m512bh)_mm512_loadu_si512(keys + 16);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const __m512bh query = pair(rows[r] + column);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], query, low);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], query, high);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    _mm512_storeu_ps(to + r * BLOCK, sums[r][0]);
    _mm512_storeu_ps(to + r * BLOCK + 16, sums[r][1]);
  }
}

// The running softmax of one row over one block; returns the factor of the earlier sums.
float weigh(const float* logits, int keys, float scale, float* largest, float* total, uint16_t* weights) {
  __m512 high = _mm512_loadu_ps(logits);
  for (int key = 16; key < keys; key += 16) high = _mm512_max_ps(high, _mm512_loadu_ps(logits + key));
  const float before = *largest;
  *largest = std::max(before, _mm512_reduce_max_ps(high) * scale);
  const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(*largest);
  __m512 sum = _mm512_setzero_ps();
  for (int key = 0; key < keys; key += 32) {
    const __m512 a = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(logits + key), factor, shift));
    const __m512 b = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(logits + key + 16), factor, shift));
    sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
    _mm512_storeu_si512(weights + key, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  const float kept = std::exp2(before - *largest);
  *total = *total * kept + _mm512_reduce_add_ps(sum);
  return kept;
}

// sums (rows, columns) = kept * sums + weights (rows, keys) x values (keys, columns), a few rows at once, for
// VECTORS vectors of columns, and half a vector more if HALF.
template <int VECTORS, bool HALF>
void add_values(const uint16_t* weights, const uint32_t* values, int keys, int columns, const float* kept,
                float* sums) {
  constexpr int ALL = VECTORS + HALF, AT_ONCE = ALL <= 3 ? 8 : ALL <= 6 ? 4 : 2;  // as many as 32 registers hold
  for (int first = 0; first < ROWS; first += AT_ONCE) {
    __m512 part[AT_ONCE][VECTORS];
    __m256 half[AT_ONCE];
#pragma GCC unroll 8
    for (int r = 0; r < AT_ONCE; ++r) {
      const float* from = sums + (first + r) * columns;
#pragma GCC unroll 10
      for (int c = 0; c < VECTORS; ++c)
        part[r][c] = _mm512_mul_ps(_mm512_set1_ps(kept[first + r]), _mm512_loadu_ps(from + 16 * c));
      if (HALF) half[r] = _mm256_mul_ps(_mm256_set1_ps(kept[first + r]), _mm256_loadu_ps(from + 16 * VECTORS));
    }
    for (int key = 0; key < keys; key += 2) {
      const uint32_t* from = values + key / 2 * columns;
      __m512bh value[VECTORS];
      __m256bh last;
#pragma GCC unroll 10
      for (int c = 0; c < VECTORS; ++c) value[c] = (__m512bh)_mm512_loadu_si512(from + 16 * c);
      if (HALF) last = (__m256bh)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16 * VECTORS));
#pragma GCC unroll 8
      for (int r = 0; r < AT_ONCE; ++r) {
        const __m512bh weight = pair(weights + (first + r) * BLOCK + key);
#pragma GCC unroll 10
        for (int c = 0; c < VECTORS; ++c) part[r][c] = _mm512_dpbf16_ps(part[r][c], weight, value[c]);
        if (HALF) half[r] = _mm256_dpbf16_ps(half[r], (__m256bh)_mm512_castsi512_si256((__m512i)weight), last);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < AT_ONCE; ++r) {
      float* to = sums + (first + r) * columns;
#pragma GCC unroll 10
      for (int c = 0; c < VECTORS; ++c) _mm512_storeu_ps(to + 16 * c, part[r][c]);
      if (HALF) _mm256_storeu_ps(to + 16 * VECTORS, half[r]);
    }
  }
}

using AddValues = void (*)(const uint16_t*, const uint32_t*, int, int, const float*, float*);
template <bool HALF>
constexpr AddValues BY_VECTORS[] = {add_values<1, HALF>, add_values<2, HALF>, add_values<3, HALF>, add_values<4, HALF>,
                                    add_values<5, HALF>, add_values<6, HALF>, add_values<7, HALF>, add_values<8, HALF>,
                                    add_values<9, HALF>, add_values<10, HALF>};
constexpr const AddValues* ADD_VALUES[] = {BY_VECTORS<false>, BY_VECTORS<true>};
constexpr int MOST_VECTORS = 10;

// Weighted sums of the values for one tile of rows, not yet divided by the total weight.
void tile(const uint16_t* const* rows, const uint32_t* keys, const uint32_t* values, int count, int width,
          int columns, float scale, float* sums, float* totals) {
  alignas(64) float logits[ROWS * BLOCK];
  alignas(64) uint16_t weights[ROWS * BLOCK];
  float largest[ROWS], kept[ROWS];
  std::fill(largest, largest + ROWS, -INFINITY);
  std::fill(totals, totals + ROWS, 0.0f);
  std::fill(sums, sums + ROWS * columns, 0.0f);
  for (int block = 0; block < count; block += BLOCK) {
    const int here = std::min(BLOCK, count - block);
    const int padded = (here + GROUP - 1) / GROUP * GROUP;
    for (int group = 0; group < padded; group += GROUP)
      logits_of(rows, keys + int64_t(block + group) * (width / 2), width, logits + group);
    for (int r = 0; r < ROWS; ++r) {
      std::fill(logits + r * BLOCK + here, logits + r * BLOCK + padded, NOTHING);
      kept[r] = weigh(logits + r * BLOCK, padded, scale, largest + r, totals + r, weights + r * BLOCK);
    }
    const uint32_t* from = values + int64_t(block / 2) * columns;
    for (int first = 0; first < columns / 16; first += MOST_VECTORS)
      ADD_VALUES[columns % 16 != 0][std::min(MOST_VECTORS, columns / 16 - first) - 1](
          weights, from + 16 * first, padded, columns, kept, sums + 16 * first);
  }
}

}  // namespace

// The largest width of a head.
extern "C" int widest() { return WIDEST; }

// Queries and result (batch, rows, heads, width), keys and values (batch, count, heads, width): the two
// last dimensions are dense, the strides of the others are in elements. width is even, at most WIDEST.
// Returns 0, or 1 if memory runs out.
extern "C" int attend(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, int batch,
                      int heads, int rows, int count, int width, const int64_t* strides,
                      float scale, int threads) {
  // Half a vector only if all columns fit one call, with at least one whole vector.
  const bool half = (width + 7) / 8 % 2 == 1 && width > 16 && width < 16 * MOST_VECTORS;
  const int vectors = (width + 15) / 16, columns = 16 * vectors - 8 * half;
  const int padded = (count + GROUP - 1) / GROUP * GROUP;
  const int64_t keys_size = int64_t(padded) * (width / 2), values_size = int64_t(padded / 2) * columns;
  const int64_t each = (keys_size + values_size + 15) / 16 * 16;
  auto* packed = static_cast<uint32_t*>(std::aligned_alloc(64, each * batch * heads * sizeof(uint32_t)));
  if (packed == nullptr) return 1;
  const int tiles = (rows + ROWS - 1) / ROWS;
  const float to_powers_of_two = scale * 1.44269504f;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int head = 0; head < batch * heads; ++head) {
      const int64_t b = head / heads, at = int64_t(head % heads) * width;
      uint32_t* keys = packed + head * each;
      pack_keys(k + b * strides[2] + at, strides[3], count, width, keys);
      pack_values(v + b * strides[4] + at, strides[5], count, padded, width, columns,
                  reinterpret_cast<uint16_t*>(keys + keys_size));
    }
#pragma omp for
    for (int64_t work = 0; work < int64_t(batch) * heads * tiles; ++work) {
      const int head = int(work / tiles), first = int(work % tiles) * ROWS;
      const int64_t b = head / heads, at = int64_t(head % heads) * width;
      const uint16_t* queries[ROWS];
      for (int r = 0; r < ROWS; ++r)  // the last tile repeats its last row
        queries[r] = q + b * strides[0] + std::min(first + r, rows - 1) * strides[1] + at;
      alignas(64) float sums[ROWS * WIDEST];
      float totals[ROWS];
      const uint32_t* keys = packed + head * each;
      tile(queries, keys, keys + keys_size, count, width, columns, to_powers_of_two, sums, totals);
      for (int r = 0; r < std::min(ROWS, rows - first); ++r) {
        uint16_t* to = out + b * strides[6] + (first + r) * strides[7] + at;
        const __m512 inverse = _mm512_set1_ps(1.0f / totals[r]);
        for (int c = 0; c < vectors; ++c) {
          const __mmask16 inside = __mmask16((1u << std::min(16, width - 16 * c)) - 1);
          const __m512 mean = _mm512_mul_ps(_mm512_loadu_ps(sums + r * columns + 16 * c), inverse);
          _mm256_mask_storeu_epi16(to + 16 * c, inside, (__m256i)_mm512_cvtneps_pbh(mean));
        }
      }
    }
  }
  std::free(packed);
  return 0;
}
