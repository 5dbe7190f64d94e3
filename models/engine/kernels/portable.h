// AVX-512's intrinsics that the kernels use, on GCC's vector extension: for tests on any processor. Results differ from
// the instructions' in the last bits (sums in another order, products not fused), and denormals are kept.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64)));
typedef float __m256 __attribute__((vector_size(32)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef long long __m256i __attribute__((vector_size(32)));
typedef int16_t __m512bh __attribute__((vector_size(64)));
typedef int16_t __m256bh __attribute__((vector_size(32)));
typedef uint16_t __mmask16;

namespace portable {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint32_t HalfWords __attribute__((vector_size(32)));
typedef uint16_t Shorts __attribute__((vector_size(64)));
typedef uint16_t HalfShorts __attribute__((vector_size(32)));

template <class Vector>
Vector load(const void* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class Vector>
void store(void* to, Vector x) {
  std::memcpy(to, &x, sizeof x);
}

template <class To, class From, class Function>
To each(From x, Function function) {
  To y;
  for (int i = 0; i < int(sizeof y / sizeof y[0]); ++i) y[i] = function(x[i]);
  return y;
}

template <class Vector>
Vector where(uint32_t mask, Vector yes, Vector no) {
  for (int i = 0; i < int(sizeof yes / sizeof yes[0]); ++i)
    if (mask >> i & 1) no[i] = yes[i];
  return no;
}

// The nearest bfloat16, ties to even; what is not a number stays so.
inline uint16_t narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return uint16_t(std::isnan(x) ? bits >> 16 | 64 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// sums + products of bfloat16 pairs.
template <class Floats, class Unsigned>
Floats dot(Floats sums, Unsigned x, Unsigned y) {
  return sums + (Floats)(x << 16) * (Floats)(y << 16) + (Floats)(x & 0xFFFF0000u) * (Floats)(y & 0xFFFF0000u);
}

}  // namespace portable

enum { _CMP_GT_OQ, _CMP_LT_OQ, _CMP_NEQ_UQ };
enum { _MM_FROUND_TO_NEAREST_INT = 0, _MM_FROUND_NO_EXC = 0, _MM_HINT_T0, _MM_HINT_T1 };
inline void _mm_prefetch(const char* at, int) { __builtin_prefetch(at); }

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512 _mm512_set1_ps(float x) { return x - __m512{}; }
inline __m256 _mm256_set1_ps(float x) { return x - __m256{}; }
inline __m512 _mm512_load_ps(const void* from) { return portable::load<__m512>(from); }
inline __m512 _mm512_loadu_ps(const void* from) { return portable::load<__m512>(from); }
inline __m256 _mm256_loadu_ps(const void* from) { return portable::load<__m256>(from); }
inline void _mm512_store_ps(void* to, __m512 x) { portable::store(to, x); }
inline void _mm512_storeu_ps(void* to, __m512 x) { portable::store(to, x); }
inline void _mm256_storeu_ps(void* to, __m256 x) { portable::store(to, x); }

inline __m512 _mm512_add_ps(__m512 x, __m512 y) { return x + y; }
inline __m512 _mm512_sub_ps(__m512 x, __m512 y) { return x - y; }
inline __m512 _mm512_mul_ps(__m512 x, __m512 y) { return x * y; }
inline __m256 _mm256_mul_ps(__m256 x, __m256 y) { return x * y; }
inline __m512 _mm512_div_ps(__m512 x, __m512 y) { return x / y; }
inline __m512 _mm512_fmadd_ps(__m512 x, __m512 y, __m512 z) { return x * y + z; }
inline __m512 _mm512_fmsub_ps(__m512 x, __m512 y, __m512 z) { return x * y - z; }
inline __m512 _mm512_max_ps(__m512 x, __m512 y) { return x > y ? x : y; }  // y where one is not a number
inline __m512 _mm512_abs_ps(__m512 x) { return (__m512)((portable::Words)x & 0x7FFFFFFFu); }
inline __m512 _mm512_sqrt_ps(__m512 x) {
  return portable::each<__m512>(x, [](float one) { return std::sqrt(one); });
}
inline __m512 _mm512_roundscale_ps(__m512 x, int) {
  return portable::each<__m512>(x, [](float one) { return std::nearbyint(one); });
}
inline __m512 _mm512_scalef_ps(__m512 x, __m512 y) {
  for (int i = 0; i < 16; ++i)  // to infinite powers of two even what is not a number
    x[i] = std::isinf(y[i]) ? std::exp2(y[i]) : x[i] * std::exp2(std::floor(y[i]));
  return x;
}
inline float _mm512_cvtss_f32(__m512 x) { return x[0]; }
inline float _mm512_reduce_add_ps(__m512 x) {
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += x[i];
  return sum;
}
inline float _mm512_reduce_max_ps(__m512 x) {
  float most = x[0];
  for (int i = 1; i < 16; ++i) most = most > x[i] ? most : x[i];
  return most;
}

inline __mmask16 _mm512_cmp_ps_mask(__m512 x, __m512 y, int how) {
  const portable::Ints holds = how == _CMP_GT_OQ ? x > y : how == _CMP_LT_OQ ? x < y : x != y;
  __mmask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (holds[i] & 1) << i;
  return mask;
}
inline __m512 _mm512_mask_sub_ps(__m512 other, __mmask16 mask, __m512 x, __m512 y) {
  return portable::where(mask, x - y, other);
}
inline __m512 _mm512_maskz_div_ps(__mmask16 mask, __m512 x, __m512 y) { return portable::where(mask, x / y, __m512{}); }

inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512i _mm512_set1_epi32(int32_t x) { return (__m512i)(x - portable::Ints{}); }
inline __m512i _mm512_loadu_si512(const void* from) { return portable::load<__m512i>(from); }
inline __m256i _mm256_loadu_si256(const void* from) { return portable::load<__m256i>(from); }
inline void _mm512_storeu_si512(void* to, __m512i x) { portable::store(to, x); }
inline void _mm256_storeu_si256(void* to, __m256i x) { portable::store(to, x); }
inline void _mm256_mask_storeu_epi16(void* to, __mmask16 mask, __m256i x) {
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) static_cast<uint16_t*>(to)[i] = ((portable::HalfShorts)x)[i];
}
inline __m512i _mm512_slli_epi32(__m512i x, int bits) { return (__m512i)((portable::Words)x << bits); }
inline __m512i _mm512_max_epu32(__m512i x, __m512i y) {
  const auto a = (portable::Words)x, b = (portable::Words)y;
  return (__m512i)(a > b ? a : b);
}
inline __m512i _mm512_mask_blend_epi16(uint32_t mask, __m512i x, __m512i y) {
  return (__m512i)portable::where(mask, (portable::Shorts)y, (portable::Shorts)x);
}

inline __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }
inline __m256i _mm512_castsi512_si256(__m512i x) { return portable::load<__m256i>(&x); }
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return (__m512i)__builtin_convertvector((portable::HalfShorts)x, portable::Words);
}
inline __m256i _mm512_cvtepi32_epi16(__m512i x) {
  return (__m256i)__builtin_convertvector((portable::Words)x, portable::HalfShorts);
}
inline __m512 _mm512_cvtepi32_ps(__m512i x) { return __builtin_convertvector((portable::Ints)x, __m512); }
inline __m512i _mm512_cvtps_epi32(__m512 x) {
  return (__m512i)portable::each<portable::Ints>(
      x, [](float one) { return std::abs(one) < 0x1p31f ? int32_t(std::nearbyint(one)) : INT32_MIN; });
}
inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
  return (__m256bh)portable::each<portable::HalfShorts>(x, portable::narrowed);
}
inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  __m512bh both;
  for (int i = 0; i < 32; ++i) both[i] = int16_t(portable::narrowed(i < 16 ? low[i] : high[i - 16]));
  return both;
}

inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh x, __m512bh y) {
  return portable::dot(sums, (portable::Words)x, (portable::Words)y);
}
inline __m256 _mm256_dpbf16_ps(__m256 sums, __m256bh x, __m256bh y) {
  return portable::dot(sums, (portable::HalfWords)x, (portable::HalfWords)y);
}
inline __m512i _mm512_dpwssd_epi32(__m512i sums, __m512i x, __m512i y) {
  const auto a = (portable::Ints)x, b = (portable::Ints)y;
  return (__m512i)((portable::Ints)sums + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16));
}
