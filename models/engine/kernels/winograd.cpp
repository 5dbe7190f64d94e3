// 3x3 convolutions with a quarter of the multiplications.
//
// This is Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): a tile of 6x6 pixels, which gives 4x4
// results, and the 3x3 weights are transformed into 36 numbers each, the points. Their products, summed over the
// input channels and transformed back, are the results: 36 products for 16 of them instead of 144. In bfloat16 the
// transform would lose four bits, and float32 has half its rate. So both sides are 16-bit integers times a factor:
// for pixels one per tile and point, for weights one per output channel, each in a block of input channels. Input
// channels are equalized first: pixels are multiplied by powers of two, by which weights are divided. That is as
// fast as bfloat16, and adds a twentieth to the rounding error of the result. AVX2 has products of such integers too,
// two instructions (one with VNNI) for twice the numbers of one in float32.
//
// Weights are transformed at each use: stored transformed, they would take four times the memory, and with enough
// tiles the transform takes a tenth of the time. Each thread takes a group of tiles and goes through the output
// channels panel by panel. Its working set (the transformed weights of two rows of points and one block of
// channels, and their sums) fits the L2 cache.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "integers.h"

namespace {

constexpr int SIDE = 6;               // of a tile's pixels, and of its points
constexpr int KEPT = 4;               // side of a tile's results
constexpr int POINTS = SIDE * SIDE;
constexpr int TILES = 64;             // most tiles in a group
// Exponent of the least equalization: channels whose weights are zero must not drown the others either.
constexpr float LEAST_EQUALIZATION = -20;
// At distances of a power of two, points would fall into the same few places of a cache.
constexpr int WEIGHTS = DEPTH / 2 * PANEL + LANES;  // pairs of them
constexpr int FEWEST = 8;              // tiles in a group that is split to give every thread one
// Times to transform a tile's pixels, and a panel's weights, relative to that of a tile's products with a panel.
constexpr double PIXELS_TIME = 0.6, WEIGHTS_TIME = 8;

inline Floats plus(Floats x, float factor, Floats y) { return fused(all(factor), y, x); }

// The paper's matrices B', G and A', each times a column, for the points 0, +-NEAR, +-FAR and infinity, which
// amplify rounding errors 2.3 times less than the paper's 0, +-1, +-2 (the least is at 0.66 and 1.54).
constexpr float NEAR = 2.0f / 3, FAR = 3.0f / 2, NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;
static_assert(NEAR * FAR == 1, "the transforms omit this factor");

inline void transform_pixels(const Floats* x, Floats* to, int step) {
  const Floats a = plus(x[4], -FAR2, x[2]), b = plus(x[3], -FAR2, x[1]);
  const Floats c = plus(x[4], -NEAR2, x[2]), d = plus(x[3], -NEAR2, x[1]);
  to[0] = plus(x[4], -NEAR2 - FAR2, x[2]) + x[0];
  to[step] = plus(a, NEAR, b);
  to[2 * step] = plus(a, -NEAR, b);
  to[3 * step] = plus(c, FAR, d);
  to[4 * step] = plus(c, -FAR, d);
  to[5 * step] = plus(x[5], -NEAR2 - FAR2, x[3]) + x[1];
}

// G's rows are scaled to length 1; GAINS has the rest.
const float NEAR_LENGTH = std::sqrt(1 + NEAR2 + NEAR2 * NEAR2), FAR_LENGTH = std::sqrt(1 + FAR2 + FAR2 * FAR2);
const float NEAR_GAIN = NEAR_LENGTH / (2 * NEAR2 * (NEAR2 - FAR2)), FAR_GAIN = FAR_LENGTH / (2 * FAR2 * (FAR2 - NEAR2));
const float GAINS[SIDE] = {1, NEAR_GAIN, NEAR_GAIN, FAR_GAIN, FAR_GAIN, 1};

inline void transform_weights(const Floats* x, Floats* to) {
  const Floats near = plus((1 / NEAR_LENGTH) * x[0], NEAR2 / NEAR_LENGTH, x[2]);
  const Floats far = plus((1 / FAR_LENGTH) * x[0], FAR2 / FAR_LENGTH, x[2]);
  to[0] = x[0];
  to[1] = plus(near, NEAR / NEAR_LENGTH, x[1]);
  to[2] = plus(near, -NEAR / NEAR_LENGTH, x[1]);
  to[3] = plus(far, FAR / FAR_LENGTH, x[1]);
  to[4] = plus(far, -FAR / FAR_LENGTH, x[1]);
  to[5] = x[2];
}

inline void transform_back(const Floats* x, Floats* to, int step) {
  const Floats a = x[1] + x[2], b = x[1] - x[2];
  const Floats c = x[3] + x[4], d = x[3] - x[4];
  to[0] = x[0] + a + c;
  to[step] = plus(NEAR * b, FAR, d);
  to[2 * step] = plus(NEAR2 * a, FAR2, c);
  to[3 * step] = plus(plus(x[5], NEAR * NEAR2, b), FAR * FAR2, d);
}

struct Picture {
  int height, width, channels;
  int64_t across, tiles;  // tiles in a row, and in all
  bool doubled;           // the input has half the size, and each pixel stands for 2x2

  int64_t image(int64_t tile) const { return tile / tiles; }
  int top(int64_t tile) const { return int(tile % tiles / across) * KEPT; }
  int left(int64_t tile) const { return int(tile % across) * KEPT; }
  int64_t at(int64_t image, int row, int column) const {
    return ((image * (height >> doubled) + (row >> doubled)) * (width >> doubled) + (column >> doubled)) * channels;
  }
};

// Some channels of the pixels of a tile -> to[point], integers, and their factors, G's gain included; pixels outside
// the picture are zero.
void read_tile(const uint16_t* x, const float* equalization, const Picture& p, int64_t tile, int first, int depth,
               int16_t* to, int64_t stride, float* factors) {
  const int64_t image = p.image(tile);
  const int top = p.top(tile) - 1, left = p.left(tile) - 1;
  alignas(64) float points[POINTS][DEPTH];
  Floats squares[POINTS];
  for (auto& one : squares) one = Floats{};
  for (int c = 0; c < depth; c += LANES) {
    const Floats share = load(equalization + first + c);
    Floats half[POINTS];
    for (int j = 0; j < SIDE; ++j) {
      Floats column[SIDE];
#pragma GCC unroll 6
      for (int i = 0; i < SIDE; ++i) {
        const int row = top + i, at = left + j;
        const bool inside = row >= 0 && row < p.height && at >= 0 && at < p.width;
        column[i] = inside ? share * widened(x + p.at(image, row, at) + first + c) : Floats{};
      }
      transform_pixels(column, half + j, SIDE);
    }
    for (int i = 0; i < SIDE; ++i) {
      Floats row[SIDE];
      transform_pixels(half + SIDE * i, row, 1);
#pragma GCC unroll 6
      for (int j = 0; j < SIDE; ++j) {
        store(points[SIDE * i + j] + c, row[j]);
        squares[SIDE * i + j] = fused(row[j], row[j], squares[SIDE * i + j]);
      }
    }
  }
  for (int point = 0; point < POINTS; ++point, to += stride) {
    const float norm = std::sqrt(sum_of(squares[point]));
    const float up = norm == 0 ? 0 : ROWS_NORM / norm;
    factors[point * TILES] = norm / ROWS_NORM * GAINS[point / SIDE] * GAINS[point % SIDE];
    for (int c = 0; c < depth; c += LANES) store(to + c, halves((Words)nearest(load(points[point] + c) * up)));
  }
}

// Pairs of rows of points, which share sums.
constexpr int PAIRS[3][2] = {{0, 5}, {1, 2}, {3, 4}};

// Weights (depth, 9, PANEL) -> to[point of the pair] (depth / 2, PANEL, 2), for `width` output channels. They are
// bfloat16, or 8-bit integers times a scale for each column.
template <int PAIR, class Weight>
void read_weights(const Weight* weights, const float* scales, const float* norms, int depth, int width, int32_t* to) {
  for (int c = 0; c < width; c += LANES) {
    const Floats norm = load(norms + c), scale = scales ? load(scales + c) : all(1);
    const Floats up = norm != 0.0f ? WEIGHTS_NORM * scale / norm : Floats{};
    for (int k = 0; k < depth; k += 2) {
      Ints first[2 * SIDE];
#pragma GCC unroll 2
      for (int one = 0; one < 2; ++one) {
        Floats parts[2][3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          Floats column[3], points[SIDE];  // two of them are used, so that the compiler drops the rest
#pragma GCC unroll 3
          for (int i = 0; i < 3; ++i) {
            const Weight* at = weights + ((k + one) * 9 + 3 * i + j) * PANEL + c;
            column[i] = widened(at);
            __builtin_prefetch(at + depth * 9 * PANEL, 0, 2);  // the next block, into the L2 cache
          }
          transform_weights(column, points);
          for (int i = 0; i < 2; ++i) parts[i][j] = up * points[PAIRS[PAIR][i]];
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          Floats row[SIDE];
          transform_weights(parts[i], row);
#pragma GCC unroll 6
          for (int j = 0; j < SIDE; ++j) {
            const Ints whole = nearest(row[j]);
            const int point = SIDE * i + j;
            if (one == 0)
              first[point] = whole;
            else
              store(to + point * WEIGHTS + k / 2 * PANEL + c, (first[point] & 0xFFFF) | (whole << 16));
          }
        }
      }
    }
  }
}

template <class Weight>
using ReadWeights = void (*)(const Weight*, const float*, const float*, int, int, int32_t*);
template <class Weight>
constexpr ReadWeights<Weight> READ_WEIGHTS[] = {read_weights<0, Weight>, read_weights<1, Weight>,
                                                read_weights<2, Weight>};

// A tile's sums[point] -> its results in some channels, where they are inside the picture.
void write_tile(const float* sums, int64_t stride, const Picture& p, int64_t tile, int first, int width,
                const uint16_t* bias, const uint16_t* kept, bool relu, uint16_t* out) {
  const int64_t image = p.image(tile);
  const int top = p.top(tile), left = p.left(tile);
  for (int c = 0; c < width; c += LANES) {
    Floats half[KEPT * SIDE];
    for (int j = 0; j < SIDE; ++j) {
      Floats column[SIDE];
#pragma GCC unroll 6
      for (int i = 0; i < SIDE; ++i) column[i] = load(sums + (SIDE * i + j) * stride + c);
      transform_back(column, half + j, SIDE);
    }
    const Floats shift = bias == nullptr ? Floats{} : widened(bias + first + c);
    for (int i = 0; i < std::min(KEPT, p.height - top); ++i) {
      Floats row[KEPT];
      transform_back(half + SIDE * i, row, 1);
      for (int j = 0; j < std::min(KEPT, p.width - left); ++j) {
        const int64_t at = p.at(image, top + i, left + j) + first + c;
        Floats y = row[j] + shift;
        if (kept != nullptr) y += widened(kept + at);
        if (relu) y = larger(Floats{}, y);  // in this order NaN stays NaN
        store(out + at, narrowed(y));
      }
    }
  }
}

// Division of the work into groups of tiles and shares of the panels.
struct Division {
  int64_t tiles;
  int panels;
  int64_t groups, shares;
};

// The division that finishes first: each part transforms its own pixels and weights.
Division best_division(int64_t tiles, int panels, int threads) {
  Division best{};
  double least = INFINITY;
  const int64_t fewest = (tiles + TILES - 1) / TILES;
  for (int64_t groups = fewest; groups <= std::max(fewest, std::min<int64_t>(4 * threads, tiles / FEWEST)); ++groups)
    for (int shares = 1; shares <= panels; ++shares) {
      const int64_t some = (tiles + groups - 1) / groups;
      const int few = (panels + shares - 1) / shares;
      const double time = double((groups * shares + threads - 1) / threads) *
                          (PIXELS_TIME * some + few * (some + WEIGHTS_TIME));
      if (time < least) best = {some, few, groups, shares}, least = time;
    }
  return best;
}

// Norms of the input channels' weights, 1 in the mean, as powers of two -> equalization (in), and weights (panels, in,
// 9, PANEL) divided by them. Each output's weights count as if their norm was 1, so that one with large weights does
// not decide for the others; one with a NaN or infinite weight does not count.
void equalize_channels(uint16_t* weights, float* equalization, int panels, int in) {
  std::fill(equalization, equalization + in, 0.0f);
  for (int panel = 0; panel < panels; ++panel)
    for (int c = 0; c < PANEL; c += LANES) {
      const auto square_of = [&](int first, int last) {
        Floats sum{};
        for (int row = 9 * first; row < 9 * last; ++row) {
          const Floats x = widened(weights + (int64_t(panel) * in * 9 + row) * PANEL + c);
          sum = fused(x, x, sum);
        }
        return sum;
      };
      const Floats whole = square_of(0, in);
      const Ints sound = (whole > 0.0f) & (whole < INFINITY);
      for (int k = 0; k < in; ++k) equalization[k] += sum_of(sound ? square_of(k, k + 1) / whole : Floats{});
    }
  float mean = 0;
  for (int k = 0; k < in; ++k) mean += std::sqrt(equalization[k]) / in;
  for (int k = 0; k < in; ++k) {
    const float power = std::round(std::log2(std::sqrt(equalization[k]) / mean));
    equalization[k] = mean > 0 ? std::exp2(std::max(LEAST_EQUALIZATION, power)) : 1;
  }
  for (int64_t row = 0; row < int64_t(panels) * in * 9; ++row)
    for (int c = 0; c < PANEL; c += LANES) {
      uint16_t* at = weights + row * PANEL + c;
      store(at, narrowed((1 / equalization[row / 9 % in]) * widened(at)));
    }
}

// The largest norm at any point of each column of a block, or twice its largest number -> norms (panels, blocks,
// PANEL), of weights (panels, in, 9, PANEL), and their scales, like the norms, or null.
template <class Weight>
void measure(const Weight* weights, const float* scales, float* norms, int panels, int in) {
  const int blocks = (in + DEPTH - 1) / DEPTH;
  for (int work = 0; work < panels * blocks; ++work) {
    const int first = work % blocks * DEPTH, last = std::min(in, first + DEPTH);
    for (int c = 0; c < PANEL; c += LANES) {
      // Squares are compared as integers, which have the same order; NaN is the largest, and stays.
      const auto larger = [](Floats a, Floats b) { return (Floats)((Words)a > (Words)b ? (Words)a : (Words)b); };
      Floats squares[POINTS], most{};
      std::fill(squares, squares + POINTS, most);
      for (int k = first; k < last; ++k) {
        Floats half[3][SIDE];
        const Weight* from = weights + (int64_t(work / blocks) * in + k) * 9 * PANEL + c;
        for (int j = 0; j < 3; ++j) {
          Floats column[3];
          for (int i = 0; i < 3; ++i) column[i] = widened(from + (3 * i + j) * PANEL);
          transform_weights(column, half[j]);
        }
        for (int i = 0; i < SIDE; ++i) {
          const Floats column[3] = {half[0][i], half[1][i], half[2][i]};
          Floats row[SIDE];
          transform_weights(column, row);
          for (int j = 0; j < SIDE; ++j) {
            const Floats square = row[j] * row[j];
            squares[SIDE * i + j] += square;
            most = larger(most, square);
          }
        }
      }
      most = 4.0f * most;
      for (const Floats one : squares) most = larger(most, one);
      const Floats scale = scales ? load(scales + work * PANEL + c) : all(1);
      store(norms + work * PANEL + c, scale * root(most));
    }
  }
}

}  // namespace

// Channels must be multiples of the first; weights are laid out in panels of the second; norms are those of blocks of
// the third.
extern "C" int lanes() { return LANES; }
extern "C" int panel() { return PANEL; }
extern "C" int depth() { return DEPTH; }

// Weights (panels, in, 9, PANEL), zeros after the last output channel -> the same, divided by their equalization (in).
extern "C" void equalize(uint16_t* weights, float* equalization, int panels, int in) {
  equalize_channels(weights, equalization, panels, in);
}

// Equalized weights -> norms (panels, blocks, PANEL). With scales of that shape weights are 8-bit integers.
extern "C" void measure_norms(const void* weights, const float* scales, float* norms, int panels, int in) {
  if (scales)
    measure(static_cast<const int8_t*>(weights), scales, norms, panels, in);
  else
    measure(static_cast<const uint16_t*>(weights), nullptr, norms, panels, in);
}

// x (batch, height, width, in), of half the height and width if `doubled`; weights (panels, in, 9,
// PANEL) with anything after the last output channel, divided by their equalization (in), by which pixels are
// multiplied, and their norms; scales like the norms, with which weights are 8-bit integers, or null; bias (channels) or
// null; kept, which is added, like the result or null; result (batch, height, width, channels). Equalization, norms and
// scales are float32, all else is bfloat16, dense; in and channels are multiples of LANES. Returns 0, or 1 if memory
// runs out.
extern "C" int convolve(const uint16_t* x, const void* weights, const float* equalization, const float* norms,
                        const float* scales, const uint16_t* bias, const uint16_t* kept, uint16_t* out, int batch,
                        int height, int width, int in, int channels, int doubled, int relu, int threads) {
  const int64_t across = (width + KEPT - 1) / KEPT, each = across * ((height + KEPT - 1) / KEPT);
  const int64_t all = batch * each;
  if (all == 0) return 0;
  const Picture from{height, width, in, across, each, doubled != 0}, to{height, width, channels, across, each, false};
  const int blocks = (in + DEPTH - 1) / DEPTH, panels = (channels + PANEL - 1) / PANEL;
  const Division part = best_division(all, panels, threads);
  // Sizes in float32: the integers of pixels and weights with their factors, and the sums.
  const int64_t v_stride = part.tiles * DEPTH + 2 * LANES, sums_stride = part.tiles * PANEL + LANES;
  const int64_t v_size = blocks * POINTS * v_stride / 2, factors_size = blocks * POINTS * TILES;
  const int64_t sums_size = POINTS * sums_stride, u_size = 2 * SIDE * WEIGHTS;
  const int64_t own = v_size + factors_size + sums_size + u_size;
  threads = int(std::min<int64_t>(threads, part.groups * part.shares));
  auto* room = static_cast<float*>(std::aligned_alloc(64, own * threads * sizeof(float)));
  if (room == nullptr) return 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t work = 0; work < part.groups * part.shares; ++work) {
    const int64_t first = work / part.shares * part.tiles;
    const int count = int(std::min(part.tiles, all - first)), from_panel = int(work % part.shares) * part.panels;
    const int to_panel = std::min(panels, from_panel + part.panels);
    if (count <= 0 || from_panel >= to_panel) continue;  // after rounding up, fewer parts may do
    float* sums = room + own * omp_get_thread_num();
    float* factors = sums + sums_size;
    auto* u = reinterpret_cast<int32_t*>(factors + factors_size);
    auto* v = reinterpret_cast<int16_t*>(u + u_size);
    for (int tile = 0; tile < count; ++tile)
      for (int block = 0; block < blocks; ++block)
        read_tile(x, equalization, from, first + tile, block * DEPTH, std::min(DEPTH, in - block * DEPTH),
                  v + block * POINTS * v_stride + tile * DEPTH, v_stride, factors + block * POINTS * TILES + tile);
    for (int panel = from_panel; panel < to_panel; ++panel) {
      const int columns = std::min(PANEL, channels - panel * PANEL);
      for (int pair = 0; pair < 3; ++pair)
        for (int block = 0; block < blocks; ++block) {
          const int depth = std::min(DEPTH, in - block * DEPTH);
          const int64_t at = (int64_t(panel) * in + block * DEPTH) * 9 * PANEL, scale = (panel * blocks + block) * PANEL;
          const float* own_norms = norms + scale;
          if (scales)
            READ_WEIGHTS<int8_t>[pair](static_cast<const int8_t*>(weights) + at, scales + scale, own_norms, depth,
                                       columns, u);
          else
            READ_WEIGHTS<uint16_t>[pair](static_cast<const uint16_t*>(weights) + at, nullptr, own_norms, depth,
                                         columns, u);
          for (int j = 0; j < 2 * SIDE; ++j) {
            const int point = SIDE * PAIRS[pair][j / SIDE] + j % SIDE;
            all_products(v + (block * POINTS + point) * v_stride, u + j * WEIGHTS, count, depth, columns, block == 0,
                         {factors + (block * POINTS + point) * TILES, own_norms}, sums + point * sums_stride);
          }
        }
      for (int tile = 0; tile < count; ++tile)
        write_tile(sums + tile * PANEL, sums_stride, to, first + tile, panel * PANEL, columns, bias, kept, relu, out);
    }
  }
  std::free(room);
  return 0;
}
