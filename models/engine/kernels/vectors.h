// What the kernels share: vectors of LANES numbers on GCC's vector extension, and what that has no word for.
//
// The same sources are compiled for each target of build.py: AVX-512, with or without its instructions for products of
// bfloat16 (BF16) and of 16-bit integers (VNNI); AVX2 with FMA; and, as the tests' reference, any processor. Without
// BF16 a bfloat16 is widened to float32, which is a shift, and narrowed by arithmetic on its bits. Targets differ in the
// last bits: sums are in another order, and the reference's products are not fused.
#pragma once
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#define SIMD(name) _mm512_##name
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
#define SIMD(name) _mm256_##name
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 16, REGISTERS = 32;
#endif

// In the inner loops: rows, and vectors of columns, whose sums the registers hold beside one row's operands.
constexpr int ROWS_AT_ONCE = REGISTERS == 32 ? 6 : 5, VECTORS_AT_ONCE = REGISTERS == 32 ? 4 : 2;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));  // bfloat16, or 16-bit integers
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef float HalfFloats __attribute__((vector_size(2 * LANES)));
typedef uint32_t HalfWords __attribute__((vector_size(2 * LANES)));

template <class Vector>
inline Vector load(const void* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline Floats load(const float* from) { return load<Floats>(from); }

template <class Vector>
inline void store(void* to, Vector x) {
  std::memcpy(to, &x, sizeof x);
}

template <class Vector = Floats>
inline Vector all(float x) {
  return x - Vector{};
}

#ifdef SIMD
// x y + z, rounded once.
inline Floats fused(Floats x, Floats y, Floats z) { return SIMD(fmadd_ps)(x, y, z); }
inline Floats root(Floats x) { return SIMD(sqrt_ps)(x); }
inline Floats larger(Floats x, Floats y) { return SIMD(max_ps)(x, y); }  // y where one is not a number
inline Floats smaller(Floats x, Floats y) { return SIMD(min_ps)(x, y); }
// The nearest whole number, ties to even; the least where there is none.
inline Ints nearest(Floats x) { return (Ints)SIMD(cvtps_epi32)(x); }
#else
inline Floats fused(Floats x, Floats y, Floats z) { return x * y + z; }
inline Floats root(Floats x) {
  for (int i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
  return x;
}
inline Floats larger(Floats x, Floats y) { return x > y ? x : y; }
inline Floats smaller(Floats x, Floats y) { return x < y ? x : y; }
inline Ints nearest(Floats x) {
  Ints y;
  for (int i = 0; i < LANES; ++i) y[i] = std::abs(x[i]) < 0x1p31f ? int32_t(std::nearbyint(x[i])) : INT32_MIN;
  return y;
}
#endif

#ifdef __AVX512F__
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
#else
inline float sum_of(Floats x) {
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}
inline float largest_of(Floats x) {
  for (int i = 1; i < LANES; ++i) x[0] = x[0] > x[i] ? x[0] : x[i];
  return x[0];
}
#endif

// 2^x = 2^n 2^f with f in [-0.5, 0.5]; the polynomial is within 3e-6, a bfloat16 is within 2e-3.
inline Floats exp2_of(Floats x) {
#ifdef __AVX512F__
  const Floats whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = larger(all(-127), smaller(all(128), x));  // which give 0 and infinity; NaN stays NaN
  const Floats whole = __builtin_convertvector(nearest(x), Floats);
#endif
  const Floats f = x - whole;
  Floats y = all(9.58283e-3f);
  y = fused(y, f, all(5.590642e-2f));
  y = fused(y, f, all(2.4024099e-1f));
  y = fused(y, f, all(6.9312419e-1f));
  y = fused(y, f, all(1.0f));
#ifdef __AVX512F__
  return _mm512_scalef_ps(y, whole);
#else
  return y * (Floats)((nearest(x) + 127) << 23);
#endif
}

// The lower half of each.
inline Halves halves(Words x) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
  const __m256i low = _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xFFFF));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return (Halves)_mm256_castsi256_si128(packed);
#else
  return __builtin_convertvector(x, Halves);
#endif
}

// bfloat16 as float32, one or LANES.
inline float widened(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline Floats widened(const uint16_t* from) {
#if defined(__AVX512F__)
  const Words words = (Words)_mm512_cvtepu16_epi32((__m256i)load<Halves>(from));
#elif defined(__AVX2__)
  const Words words = (Words)_mm256_cvtepu16_epi32((__m128i)load<Halves>(from));
#else
  const Words words = __builtin_convertvector(load<Halves>(from), Words);
#endif
  return (Floats)(words << 16);
}

// LANES 8-bit integers as float32.
inline Floats widened(const int8_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)load<Bytes>(from)));
#elif defined(__AVX2__)
  int64_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)));
#else
  return __builtin_convertvector(load<Bytes>(from), Floats);
#endif
}

// LANES pairs of 8-bit integers as pairs of 16-bit ones.
inline Ints widened_pairs(const int8_t* from) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi16(load<__m256i>(from));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepi8_epi16(load<__m128i>(from));
#else
  Ints pairs;
  for (int i = 0; i < LANES; ++i) pairs[i] = (from[2 * i] & 0xFFFF) | (int32_t(from[2 * i + 1]) << 16);
  return pairs;
#endif
}

// The nearest bfloat16, ties to even; what is not a number stays so.
inline Halves narrowed(Floats x) {
#ifdef __AVX512BF16__
  return (Halves)_mm512_cvtneps_pbh(x);
#else
  const Words bits = (Words)x;
  return halves((x == x ? bits + 0x7FFF + (bits >> 16 & 1) : bits | 0x400000) >> 16);
#endif
}

// Products of bfloat16 come in pairs, two neighbours in one 32-bit lane (VNNI's order), summed in float32. One factor
// is a vector of pairs, the other one pair for all lanes. BF16 multiplies both numbers of a pair at once; elsewhere
// they take turns in HALVES, and the one for all lanes is float32 beforehand.
#ifdef __AVX512BF16__
constexpr int HALVES = 1;
typedef uint16_t Factor;
template <class Sums>
inline auto pairs(const void* from, int) {
  if constexpr (sizeof(Sums) == 64)
    return load<__m512bh>(from);
  else
    return load<__m256bh>(from);
}
template <class Sums>
inline auto for_all(const Factor* pair, int) {
  int32_t both;
  std::memcpy(&both, pair, sizeof both);
  if constexpr (sizeof(Sums) == 64)
    return (__m512bh)_mm512_set1_epi32(both);
  else
    return (__m256bh)_mm256_set1_epi32(both);
}
inline void add_products(Floats& sums, __m512bh x, __m512bh y) { sums = _mm512_dpbf16_ps(sums, x, y); }
inline void add_products(HalfFloats& sums, __m256bh x, __m256bh y) { sums = _mm256_dpbf16_ps(sums, x, y); }
inline const Factor* factors(const uint16_t* from, int64_t, Factor*) { return from; }
inline void write_factors(Factor* to, Floats low, Floats high) { store(to, _mm512_cvtne2ps_pbh(high, low)); }
#else
constexpr int HALVES = 2;
typedef float Factor;
template <class Sums>
inline Sums pairs(const void* from, int half) {
  const auto both = load<std::conditional_t<sizeof(Sums) == sizeof(Floats), Words, HalfWords>>(from);
  return (Sums)(half ? both & 0xFFFF0000u : both << 16);
}
template <class Sums>
inline Sums for_all(const Factor* pair, int half) {
  return all<Sums>(pair[half]);
}
template <class Sums>
inline void add_products(Sums& sums, Sums x, Sums y) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // not the compiler's: GCC 12 keeps copies of the sums, as below
  asm("vfmadd231ps %2, %1, %0" : "+x"(sums) : "x"(x), "x"(y));
#else
  sums += x * y;  // fused by the compiler
#endif
}
// A row of bfloat16 as factors for all lanes, in `room` if they are not the same.
inline const Factor* factors(const uint16_t* from, int64_t count, Factor* room) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(room + i, widened(from + i));
  for (; i < count; ++i) room[i] = widened(from[i]);
  return room;
}
// Two vectors as factors for all lanes.
inline void write_factors(Factor* to, Floats low, Floats high) {
  store(to, low);
  store(to + LANES, high);
}
#endif

// sums + products of pairs of 16-bit integers.
inline void add_products(Ints& sums, Ints x, Ints y) {
#if defined(__AVX512VNNI__)  // not the intrinsic, for which GCC 12 keeps copies of the sums, and runs out of registers
  asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
#elif defined(__AVX512F__)
  sums += (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)y);
#elif defined(__AVX2__)
  sums += (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#else
  sums += (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}
