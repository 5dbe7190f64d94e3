// Attention in bfloat16: softmax(q k' * scale) v.
//
// torch's own (flash attention too) spends most of its time in small products without the bfloat16
// instructions: 75 GFLOP/s of 434 on one Zen 5 core, for SD 1.5's 4096 tokens. Here keys and values
// are first packed as those instructions need them (VNNI): two neighbours in one 32-bit lane. Then, as
// in flash attention (Dao et al. 2022, arXiv 2205.14135), a tile of rows goes through the keys block by
// block. Logits, sums and results are float32; only the softmax weights are rounded, as torch does, and not even these
// where there are no such instructions: then all products are float32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int ROWS = REGISTERS == 32 ? 8 : ROWS_AT_ONCE;  // of a tile
constexpr int GROUP = 2 * LANES;  // keys of one product
constexpr int BLOCK = 256;     // keys between two updates of the maximum; their logits stay in the L1 cache
constexpr int MOST_VECTORS = REGISTERS == 32 ? 10 : VECTORS_AT_ONCE;  // of columns of values at once
constexpr int CHUNK = MOST_VECTORS * LANES;
constexpr int WIDEST = 512;    // of a head: the UNet has 40, 80 and 160, the decoder 512
constexpr float NOTHING = -1e30f;  // logit of a padding key; -inf would give inf - inf

// (keys, width) -> groups of keys, each (width / 2) x GROUP pairs of neighbouring columns.
void pack_keys(const uint16_t* from, int64_t stride, int keys, int width, uint32_t* to) {
  for (int group = 0; group < keys; group += GROUP)
    for (int column = 0; column < width; column += 2)
      for (int key = group; key < group + GROUP; ++key, ++to) {
        *to = 0;
        if (key < keys) std::memcpy(to, from + key * stride + column, sizeof *to);
      }
}

// (keys, width) -> chunks of columns, each (keys / 2) x columns pairs of neighbouring keys, padded with zeros.
void pack_values(const uint16_t* from, int64_t stride, int keys, int padded_keys, int width, int columns,
                 uint16_t* to) {
  for (int first = 0; first < columns; first += CHUNK)
    for (int key = 0; key < padded_keys; key += 2)
      for (int column = first; column < std::min(first + CHUNK, columns); ++column)
        for (int one = key; one < key + 2; ++one, ++to)
          *to = one < keys && column < width ? from[one * stride + column] : 0;
}

// Logits of a tile of rows (ROWS, width) with one group of keys. Inlined, GCC 12 would keep the sums in memory.
[[gnu::noinline]] void logits_of(const Factor* const* rows, const uint32_t* keys, int width, float* to) {
  Floats sums[ROWS][2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = Floats{};
  for (int column = 0; column < width; column += 2, keys += GROUP)
#pragma GCC unroll 2
    for (int half = 0; half < HALVES; ++half) {
      const auto low = pairs<Floats>(keys, half), high = pairs<Floats>(keys + LANES, half);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const auto query = for_all<Floats>(rows[r] + column, half);
        add_products(sums[r][0], query, low);
        add_products(sums[r][1], query, high);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    store(to + r * BLOCK, sums[r][0]);
    store(to + r * BLOCK + LANES, sums[r][1]);
  }
}

// The running softmax of one row over one block; returns the factor of the earlier sums.
float weigh(const float* logits, int keys, float scale, float* largest, float* total, Factor* weights) {
  Floats high = load(logits);
  for (int key = LANES; key < keys; key += LANES) high = larger(high, load(logits + key));
  const float before = *largest;
  *largest = std::max(before, largest_of(high) * scale);
  const Floats factor = all(scale), shift = all(-*largest);
  Floats sum{};
  for (int key = 0; key < keys; key += GROUP) {
    const Floats a = exp2_of(fused(load(logits + key), factor, shift));
    const Floats b = exp2_of(fused(load(logits + key + LANES), factor, shift));
    sum += a + b;
    write_factors(weights + key, a, b);
  }
  const float kept = std::exp2(before - *largest);
  *total = *total * kept + sum_of(sum);
  return kept;
}

// sums (rows, columns) = kept * sums + weights (rows, keys) x values (keys, VECTORS vectors of columns, and half a
// vector more if HALF), a few rows at once.
template <int VECTORS, bool HALF>
void add_values(const Factor* weights, const uint32_t* values, int keys, const float* kept, float* sums,
                int columns) {
  // As many rows as the registers hold.
  constexpr int ALL = VECTORS + HALF, AT_ONCE = REGISTERS == 16 ? ROWS : ALL <= 3 ? 8 : ALL <= 6 ? 4 : 2;
  for (int first = 0; first < ROWS; first += AT_ONCE) {
    Floats part[AT_ONCE][VECTORS];
    HalfFloats last[AT_ONCE];
#pragma GCC unroll 8
    for (int r = 0; r < AT_ONCE; ++r) {
      const float* from = sums + (first + r) * columns;
#pragma GCC unroll 10
      for (int c = 0; c < VECTORS; ++c) part[r][c] = kept[first + r] * load(from + LANES * c);
      if (HALF) last[r] = kept[first + r] * load<HalfFloats>(from + LANES * VECTORS);
    }
    for (int key = 0; key < keys; key += 2)
#pragma GCC unroll 2
      for (int half = 0; half < HALVES; ++half) {
        const uint32_t* from = values + key / 2 * (LANES * VECTORS + HALF * LANES / 2);
        decltype(pairs<Floats>(from, 0)) value[VECTORS];
        decltype(pairs<HalfFloats>(from, 0)) last_value;
#pragma GCC unroll 10
        for (int c = 0; c < VECTORS; ++c) value[c] = pairs<Floats>(from + LANES * c, half);
        if (HALF) last_value = pairs<HalfFloats>(from + LANES * VECTORS, half);
#pragma GCC unroll 8
        for (int r = 0; r < AT_ONCE; ++r) {
          const Factor* weight = weights + (first + r) * BLOCK + key;
#pragma GCC unroll 10
          for (int c = 0; c < VECTORS; ++c) add_products(part[r][c], for_all<Floats>(weight, half), value[c]);
          if (HALF) add_products(last[r], for_all<HalfFloats>(weight, half), last_value);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < AT_ONCE; ++r) {
      float* to = sums + (first + r) * columns;
#pragma GCC unroll 10
      for (int c = 0; c < VECTORS; ++c) store(to + LANES * c, part[r][c]);
      if (HALF) store(to + LANES * VECTORS, last[r]);
    }
  }
}

using AddValues = void (*)(const Factor*, const uint32_t*, int, const float*, float*, int);
template <bool HALF>
constexpr AddValues BY_VECTORS[] = {add_values<1, HALF>, add_values<2, HALF>, add_values<3, HALF>, add_values<4, HALF>,
                                    add_values<5, HALF>, add_values<6, HALF>, add_values<7, HALF>, add_values<8, HALF>,
                                    add_values<9, HALF>, add_values<10, HALF>};
constexpr const AddValues* ADD_VALUES[] = {BY_VECTORS<false>, BY_VECTORS<true>};

// Weighted sums of the values for one tile of rows, not yet divided by the total weight.
void tile(const Factor* const* rows, const uint32_t* keys, const uint32_t* values, int count, int width,
          int columns, float scale, float* sums, float* totals) {
  alignas(64) float logits[ROWS * BLOCK];
  alignas(64) Factor weights[ROWS * BLOCK];
  float largest[ROWS], kept[ROWS];
  std::fill(largest, largest + ROWS, -INFINITY);
  std::fill(totals, totals + ROWS, 0.0f);
  std::fill(sums, sums + ROWS * columns, 0.0f);
  const int all = (count + GROUP - 1) / GROUP * GROUP;
  for (int block = 0; block < count; block += BLOCK) {
    const int here = std::min(BLOCK, count - block);
    const int padded = (here + GROUP - 1) / GROUP * GROUP;
    for (int group = 0; group < padded; group += GROUP)
      logits_of(rows, keys + int64_t(block + group) * (width / 2), width, logits + group);
    for (int r = 0; r < ROWS; ++r) {
      std::fill(logits + r * BLOCK + here, logits + r * BLOCK + padded, NOTHING);
      kept[r] = weigh(logits + r * BLOCK, padded, scale, largest + r, totals + r, weights + r * BLOCK);
    }
    for (int first = 0; first < columns; first += CHUNK) {
      const int some = std::min(CHUNK, columns - first);
      const uint32_t* from = values + int64_t(all / 2) * first + int64_t(block / 2) * some;
      ADD_VALUES[some % LANES != 0][some / LANES - 1](weights, from, padded, kept, sums + first, columns);
    }
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
  const int halves = (width + LANES / 2 - 1) / (LANES / 2), vectors = (halves + 1) / 2;
  const bool half = halves % 2 == 1 && width > LANES && width < LANES * MOST_VECTORS;
  const int columns = LANES * vectors - LANES / 2 * half;
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
      const Factor* queries[ROWS];
      alignas(64) Factor room[ROWS][HALVES == 1 ? 1 : WIDEST];
      for (int r = 0; r < ROWS; ++r)  // the last tile repeats its last row
        queries[r] = factors(q + b * strides[0] + std::min(first + r, rows - 1) * strides[1] + at, width, room[r]);
      alignas(64) float sums[ROWS * WIDEST];
      float totals[ROWS];
      const uint32_t* keys = packed + head * each;
      tile(queries, keys, keys + keys_size, count, width, columns, to_powers_of_two, sums, totals);
      for (int r = 0; r < std::min(ROWS, rows - first); ++r) {
        uint16_t* to = out + b * strides[6] + (first + r) * strides[7] + at;
        for (int c = 0; c < width; c += LANES) {
          const Halves mean = narrowed(load(sums + r * columns + c) * (1.0f / totals[r]));
          std::memcpy(to + c, &mean, sizeof(uint16_t) * std::min(LANES, width - c));
        }
      }
    }
  }
  std::free(packed);
  return 0;
}
