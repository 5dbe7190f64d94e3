// What the kernels share. AVX-512's intrinsics are the compiler's, or with PORTABLE those of portable.h.
#pragma once
#ifdef PORTABLE
#include "portable.h"
#else
#include <immintrin.h>
#endif

#include <cstdint>

// _mm512_dpwssd_epi32, for which GCC 12 keeps copies of the sums, and runs out of registers.
inline void add_products(__m512i& sums, __m512i x, __m512i y) {
#ifdef PORTABLE
  sums = _mm512_dpwssd_epi32(sums, x, y);
#else
  asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
#endif
}

inline __m512 exp2_of(__m512 x) {
  // 2^x = 2^n 2^f with f in [-0.5, 0.5]; the polynomial is within 3e-6, a bfloat16 is within 2e-3.
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(9.58283e-3f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.590642e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4024099e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9312419e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, whole);
}

// bfloat16 as float32, one or 16.
inline float widened(uint16_t value) {
  return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(int32_t(value) << 16)));
}
inline __m512 widened(const uint16_t* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
