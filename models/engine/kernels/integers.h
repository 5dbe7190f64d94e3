// Products of rows with columns, both 16-bit integers times a factor: one for each row and one for each column, in each
// block of their depth. Sums are 32-bit integers within a block, and float32 over blocks.
#pragma once
#include <algorithm>

#include "vectors.h"

namespace {

constexpr int DEPTH = 128;  // numbers of a row, or of a column, in a block
constexpr int PANEL = 64;   // columns that lie together
constexpr int ROWS = ROWS_AT_ONCE, COLUMNS = VECTORS_AT_ONCE * LANES;
// Norms of the integer vectors: their product, the largest possible sum, fits 32 bits; a 16-bit number can hold the
// first and half the second.
constexpr float ROWS_NORM = 32000, WEIGHTS_NORM = 2 * ROWS_NORM;

struct Factors {
  const float *rows, *norms;  // of rows, and of the weights of a panel's columns
};

// Some columns of sums (COUNT, PANEL) = rows (COUNT, depth) x weights (depth, PANEL), or += unless `begins`.
template <int COUNT, int VECTORS>
void product(const int16_t* rows, const int32_t* weights, int depth, bool begins, Factors factors, float* sums) {
  Ints part[COUNT][VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c) part[r][c] = Ints{};
  for (int k = 0; k < depth; k += 2) {
    Ints weight[VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c) weight[c] = load<Ints>(weights + k / 2 * PANEL + c * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
      int32_t both;
      std::memcpy(&both, rows + r * DEPTH + k, sizeof both);
      const Ints pair = both - Ints{};
#pragma GCC unroll 4
      for (int c = 0; c < VECTORS; ++c) add_products(part[r][c], pair, weight[c]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < VECTORS; ++c) {
    const Floats weight = (1 / WEIGHTS_NORM) * load(factors.norms + c * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
      float* to = sums + r * PANEL + c * LANES;
      const Floats found = __builtin_convertvector(part[r][c], Floats) * weight;
      const Floats row = all(factors.rows[r]);
      store(to, begins ? found * row : fused(found, row, load(to)));
    }
  }
}

using Product = void (*)(const int16_t*, const int32_t*, int, bool, Factors, float*);
template <int COUNT>
constexpr Product BY_WIDTH[] = {product<COUNT, 1>, product<COUNT, 2>, product<COUNT, 3>, product<COUNT, 4>};
constexpr const Product* PRODUCTS[] = {BY_WIDTH<1>, BY_WIDTH<2>, BY_WIDTH<3>, BY_WIDTH<4>, BY_WIDTH<5>, BY_WIDTH<6>};

// sums (count, PANEL) = rows (count, depth) x `width` columns of weights (depth, PANEL), or += unless `begins`. Rows lie
// DEPTH apart, weights as pairs of neighbours in depth: (depth / 2, PANEL, 2).
inline void all_products(const int16_t* rows, const int32_t* weights, int count, int depth, int width, bool begins,
                         Factors factors, float* sums) {
  for (int r = 0; r < count; r += ROWS, rows += ROWS * DEPTH, sums += ROWS * PANEL, factors.rows += ROWS) {
    // Prefetch the next rows, which are six streams: too many for the hardware prefetcher.
    for (int next = ROWS * DEPTH; next < 2 * ROWS * DEPTH; next += 32)
      __builtin_prefetch(rows + next);
    for (int c = 0; c < width; c += COLUMNS)
      PRODUCTS[std::min(ROWS, count - r) - 1][std::min(COLUMNS, width - c) / LANES - 1](
          rows, weights + c, depth, begins, {factors.rows, factors.norms + c}, sums + c);
  }
}

}  // namespace
