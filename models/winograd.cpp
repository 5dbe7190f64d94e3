// 3x3 convolutions with a quarter of the multiplications, in bfloat16 for processors with AVX-512 BF16.
//
// This is Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): a tile of 6x6 pixels, which gives 4x4
// results, and the 3x3 weights are turned into 36 numbers each. Their products, summed over the input's
// channels and turned back, are the results: 36 products for 16 of them in place of 144. They are taken in
// float32, at half the rate of the instruction for bfloat16, in which the differences would lose four bits; so
// only the result is rounded, as in a convolution of oneDNN's. Weights are turned as they are used: kept so, they
// would take eight times the memory, and for tiles enough it takes a twelfth of the time.
//
// Each thread takes a group of tiles and goes through the output's channels panel by panel. What it has in hand
// meanwhile (the turned weights of two rows of points and one block of channels, and their sums) fits the L2 cache.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "avx512.h"

namespace {

constexpr int LANES = 16;
constexpr int SIDE = 6;               // of a tile's pixels, and of its points
constexpr int KEPT = 4;               // side of a tile's results
constexpr int POINTS = SIDE * SIDE;
constexpr int DEPTH = 64;             // input channels in a block
constexpr int PANEL = 64;             // output channels in a panel
constexpr int ROWS = 6;               // tiles at once: with a panel, 24 sums in the 32 registers
constexpr int TILES = 64;             // most tiles in a group
// At distances of a power of two, points would fall into the same few places of a cache.
constexpr int WEIGHTS = DEPTH * PANEL + LANES;
constexpr int FEWEST = 8;              // tiles in a group that is made small to give every thread one
// Time to turn a tile's pixels, and a panel's weights, in that of a tile's products with a panel.
constexpr double PIXELS_TURNED = 0.4, WEIGHTS_TURNED = 6;

inline __m512 times(float factor, __m512 x) { return _mm512_mul_ps(_mm512_set1_ps(factor), x); }
inline __m512 plus(__m512 x, float factor, __m512 y) { return _mm512_fmadd_ps(_mm512_set1_ps(factor), y, x); }

// The paper's matrices B', G and A', each times a column.

inline void turn_pixels(const __m512* x, __m512* to, int step) {
  const __m512 a = plus(x[4], -4, x[2]), b = plus(x[3], -4, x[1]);
  const __m512 c = _mm512_sub_ps(x[4], x[2]), d = _mm512_sub_ps(x[3], x[1]);
  to[0] = plus(plus(x[4], -5, x[2]), 4, x[0]);
  to[step] = _mm512_add_ps(a, b);
  to[2 * step] = _mm512_sub_ps(a, b);
  to[3 * step] = plus(c, 2, d);
  to[4 * step] = plus(c, -2, d);
  to[5 * step] = plus(plus(x[5], -5, x[3]), 4, x[1]);
}

inline void turn_weights(const __m512* x, __m512* to) {
  const __m512 ends = _mm512_add_ps(x[0], x[2]);
  const __m512 fading = plus(times(1.0f / 24, x[0]), 1.0f / 6, x[2]);
  to[0] = times(0.25f, x[0]);
  to[1] = times(-1.0f / 6, _mm512_add_ps(ends, x[1]));
  to[2] = times(-1.0f / 6, _mm512_sub_ps(ends, x[1]));
  to[3] = plus(fading, 1.0f / 12, x[1]);
  to[4] = plus(fading, -1.0f / 12, x[1]);
  to[5] = x[2];
}

inline void turn_back(const __m512* x, __m512* to, int step) {
  const __m512 a = _mm512_add_ps(x[1], x[2]), b = _mm512_sub_ps(x[1], x[2]);
  const __m512 c = _mm512_add_ps(x[3], x[4]), d = _mm512_sub_ps(x[3], x[4]);
  to[0] = _mm512_add_ps(_mm512_add_ps(x[0], a), c);
  to[step] = plus(b, 2, d);
  to[2 * step] = plus(a, 4, c);
  to[3 * step] = plus(_mm512_add_ps(b, x[5]), 8, d);
}

struct Picture {
  int height, width, channels;
  int64_t across, tiles;  // tiles in a row, and in all

  int64_t image(int64_t tile) const { return tile / tiles; }
  int top(int64_t tile) const { return int(tile % tiles / across) * KEPT; }
  int left(int64_t tile) const { return int(tile % across) * KEPT; }
  int64_t at(int64_t image, int row, int column) const {
    return ((image * height + row) * width + column) * channels;
  }
};

// Some channels of the pixels around a tile -> to[point]; outside the picture pixels are zero.
void read_tile(const uint16_t* x, const Picture& p, int64_t tile, int first, int depth, float* to, int64_t stride) {
  const int64_t image = p.image(tile);
  const int top = p.top(tile) - 1, left = p.left(tile) - 1;
  for (int c = 0; c < depth; c += LANES) {
    __m512 half[POINTS];
    for (int j = 0; j < SIDE; ++j) {
      __m512 column[SIDE];
#pragma GCC unroll 6
      for (int i = 0; i < SIDE; ++i) {
        const int row = top + i, at = left + j;
        const bool inside = row >= 0 && row < p.height && at >= 0 && at < p.width;
        column[i] = inside ? widened(x + p.at(image, row, at) + first + c) : _mm512_setzero_ps();
      }
      turn_pixels(column, half + j, SIDE);
    }
    for (int i = 0; i < SIDE; ++i) {
      __m512 row[SIDE];
      turn_pixels(half + SIDE * i, row, 1);
#pragma GCC unroll 6
      for (int j = 0; j < SIDE; ++j) _mm512_storeu_ps(to + (SIDE * i + j) * stride + c, row[j]);
    }
  }
}

// Two rows of points, which share their sums.
constexpr int PAIRS[3][2] = {{0, 5}, {1, 2}, {3, 4}};

// Weights (depth, 9, PANEL) -> to[point of the pair] (depth, PANEL), for `width` output channels.
template <int PAIR>
void read_weights(const uint16_t* weights, int depth, int width, float* to) {
  for (int k = 0; k < depth; ++k)
    for (int c = 0; c < width; c += LANES) {
      __m512 parts[2][3];
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        __m512 column[3], points[SIDE];  // of which two are used, so that no others are computed
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) column[i] = widened(weights + (k * 9 + 3 * i + j) * PANEL + c);
        turn_weights(column, points);
        for (int i = 0; i < 2; ++i) parts[i][j] = points[PAIRS[PAIR][i]];
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        __m512 row[SIDE];
        turn_weights(parts[i], row);
#pragma GCC unroll 6
        for (int j = 0; j < SIDE; ++j) _mm512_storeu_ps(to + (SIDE * i + j) * WEIGHTS + k * PANEL + c, row[j]);
      }
    }
}

using ReadWeights = void (*)(const uint16_t*, int, int, float*);
constexpr ReadWeights READ_WEIGHTS[] = {read_weights<0>, read_weights<1>, read_weights<2>};

// sums (tiles, PANEL) = pixels (tiles, depth) x weights (depth, PANEL), added to what they are unless they begin.
template <int COUNT, int VECTORS>
void product(const float* pixels, const float* weights, int depth, bool begins, float* sums) {
  __m512 part[COUNT][VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c)
      part[r][c] = begins ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * PANEL + c * LANES);
  for (int k = 0; k < depth; ++k) {
    __m512 weight[VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c) weight[c] = _mm512_loadu_ps(weights + k * PANEL + c * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
      const __m512 pixel = _mm512_set1_ps(pixels[r * DEPTH + k]);
#pragma GCC unroll 4
      for (int c = 0; c < VECTORS; ++c) part[r][c] = _mm512_fmadd_ps(pixel, weight[c], part[r][c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c) _mm512_storeu_ps(sums + r * PANEL + c * LANES, part[r][c]);
}

using Product = void (*)(const float*, const float*, int, bool, float*);
template <int COUNT>
constexpr Product BY_WIDTH[] = {product<COUNT, 1>, product<COUNT, 2>, product<COUNT, 3>, product<COUNT, 4>};
constexpr const Product* PRODUCTS[] = {BY_WIDTH<1>, BY_WIDTH<2>, BY_WIDTH<3>, BY_WIDTH<4>, BY_WIDTH<5>, BY_WIDTH<6>};

// All tiles of a group at one point.
void all_products(const float* pixels, const float* weights, int tiles, int depth, int width, bool begins,
                  float* sums) {
  for (int r = 0; r < tiles; r += ROWS, pixels += ROWS * DEPTH, sums += ROWS * PANEL) {
    for (int next = ROWS * DEPTH; next < 2 * ROWS * DEPTH; next += LANES)  // in six places at once: too many to foresee
      _mm_prefetch(reinterpret_cast<const char*>(pixels + next), _MM_HINT_T0);
    PRODUCTS[std::min(ROWS, tiles - r) - 1][width / LANES - 1](pixels, weights, depth, begins, sums);
  }
}

// A tile's sums[point] -> its results in some channels, as far as they lie in the picture.
void write_tile(const float* sums, int64_t stride, const Picture& p, int64_t tile, int first, int width,
                const uint16_t* bias, const uint16_t* kept, bool relu, uint16_t* out) {
  const int64_t image = p.image(tile);
  const int top = p.top(tile), left = p.left(tile);
  for (int c = 0; c < width; c += LANES) {
    __m512 half[KEPT * SIDE];
    for (int j = 0; j < SIDE; ++j) {
      __m512 column[SIDE];
#pragma GCC unroll 6
      for (int i = 0; i < SIDE; ++i) column[i] = _mm512_loadu_ps(sums + (SIDE * i + j) * stride + c);
      turn_back(column, half + j, SIDE);
    }
    const __m512 shift = bias == nullptr ? _mm512_setzero_ps() : widened(bias + first + c);
    for (int i = 0; i < std::min(KEPT, p.height - top); ++i) {
      __m512 row[KEPT];
      turn_back(half + SIDE * i, row, 1);
      for (int j = 0; j < std::min(KEPT, p.width - left); ++j) {
        const int64_t at = p.at(image, top + i, left + j) + first + c;
        __m512 y = _mm512_add_ps(row[j], shift);
        if (kept != nullptr) y = _mm512_add_ps(y, widened(kept + at));
        if (relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);  // in this order what is no number stays none
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), (__m256i)_mm512_cvtneps_pbh(y));
      }
    }
  }
}

// How the work is divided: into groups of tiles, each of which meets some panels.
struct Division {
  int64_t tiles;
  int panels;
  int64_t groups, shares;
};

// The one with which all threads are done soonest: each part turns its pixels and its weights anew.
Division best_division(int64_t tiles, int panels, int threads) {
  Division best{};
  double least = INFINITY;
  const int64_t fewest = (tiles + TILES - 1) / TILES;
  for (int64_t groups = fewest; groups <= std::max(fewest, std::min<int64_t>(4 * threads, tiles / FEWEST)); ++groups)
    for (int shares = 1; shares <= panels; ++shares) {
      const int64_t some = (tiles + groups - 1) / groups;
      const int few = (panels + shares - 1) / shares;
      const double time = double((groups * shares + threads - 1) / threads) *
                          (PIXELS_TURNED * some + few * (some + WEIGHTS_TURNED));
      if (time < least) best = {some, few, groups, shares}, least = time;
    }
  return best;
}

}  // namespace

// x (batch, height, width, in); weights (panels, in, 9, PANEL) with anything behind the last output channel; bias
// (channels) or null; kept, which is added, like the result or null; result (batch, height, width, channels). All
// bfloat16 and dense; in and channels are multiples of 16. Returns 0, or 1 where there is no memory.
extern "C" int convolve(const uint16_t* x, const uint16_t* weights, const uint16_t* bias, const uint16_t* kept,
                        uint16_t* out, int batch, int height, int width, int in, int channels, int relu,
                        int threads) {
  const int64_t across = (width + KEPT - 1) / KEPT, each = across * ((height + KEPT - 1) / KEPT);
  const int64_t all = batch * each;
  if (all == 0) return 0;
  const Picture from{height, width, in, across, each}, to{height, width, channels, across, each};
  const int blocks = (in + DEPTH - 1) / DEPTH, panels = (channels + PANEL - 1) / PANEL;
  const Division part = best_division(all, panels, threads);
  const int64_t v_stride = part.tiles * DEPTH + LANES, sums_stride = part.tiles * PANEL + LANES;
  const int64_t v_size = blocks * POINTS * v_stride, sums_size = POINTS * sums_stride;
  const int64_t own = v_size + sums_size + 2 * SIDE * WEIGHTS;
  threads = int(std::min<int64_t>(threads, part.groups * part.shares));
  auto* room = static_cast<float*>(std::aligned_alloc(64, own * threads * sizeof(float)));
  if (room == nullptr) return 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t work = 0; work < part.groups * part.shares; ++work) {
    const int64_t first = work / part.shares * part.tiles;
    const int count = int(std::min(part.tiles, all - first)), from_panel = int(work % part.shares) * part.panels;
    const int to_panel = std::min(panels, from_panel + part.panels);
    if (count <= 0 || from_panel >= to_panel) continue;  // rounded up, fewer parts may be enough
    float *v = room + own * omp_get_thread_num(), *sums = v + v_size, *u = sums + sums_size;
    for (int tile = 0; tile < count; ++tile)
      for (int block = 0; block < blocks; ++block)
        read_tile(x, from, first + tile, block * DEPTH, std::min(DEPTH, in - block * DEPTH),
                  v + block * POINTS * v_stride + tile * DEPTH, v_stride);
    for (int panel = from_panel; panel < to_panel; ++panel) {
      const int columns = std::min(PANEL, channels - panel * PANEL);
      for (int pair = 0; pair < 3; ++pair)
        for (int block = 0; block < blocks; ++block) {
          const int depth = std::min(DEPTH, in - block * DEPTH);
          READ_WEIGHTS[pair](weights + (int64_t(panel) * in + block * DEPTH) * 9 * PANEL, depth, columns, u);
          for (int j = 0; j < 2 * SIDE; ++j) {
            const int point = SIDE * PAIRS[pair][j / SIDE] + j % SIDE;
            all_products(v + (block * POINTS + point) * v_stride, u + j * WEIGHTS, count, depth, columns, block == 0,
                         sums + point * sums_stride);
          }
        }
      for (int tile = 0; tile < count; ++tile)
        write_tile(sums + tile * PANEL, sums_stride, to, first + tile, panel * PANEL, columns, bias, kept, relu, out);
    }
  }
  std::free(room);
  return 0;
}
