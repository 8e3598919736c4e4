// Philox words for many blocks at once. Each block has a 64-bit lane: the widening multiplication reads only the lower
// half of a lane, so the upper halves may hold anything, and a round is two multiplications, two shifts and two
// three-way xors.
#pragma once

#include "../philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastdiff {
namespace {

struct Stream {
  uint32_t index, draw, tag, k0, k1;
};

#if defined(__AVX512F__)
using Words = __m512i;
constexpr int LANES = 8, CHAINS = 4;
inline Words spread(uint32_t w) { return _mm512_set1_epi64(int64_t(w)); }
inline Words count_from(uint32_t w) { return _mm512_add_epi32(spread(w), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)); }
inline Words multiply(Words a, Words b) { return _mm512_mul_epu32(a, b); }
inline Words high(Words a) { return _mm512_srli_epi64(a, 32); }
inline Words xor3(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Words add(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline void put(uint32_t *to, Words even, Words odd) {
  _mm512_storeu_si512(to, _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA));
}
#elif defined(__AVX2__)
using Words = __m256i;
constexpr int LANES = 4, CHAINS = 2;
inline Words spread(uint32_t w) { return _mm256_set1_epi64x(int64_t(w)); }
inline Words count_from(uint32_t w) { return _mm256_add_epi32(spread(w), _mm256_set_epi64x(3, 2, 1, 0)); }
inline Words multiply(Words a, Words b) { return _mm256_mul_epu32(a, b); }
inline Words high(Words a) { return _mm256_srli_epi64(a, 32); }
inline Words xor3(Words a, Words b, Words c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline Words add(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline void put(uint32_t *to, Words even, Words odd) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
}
#elif defined(__SSE2__)
using Words = __m128i;
constexpr int LANES = 2, CHAINS = 2;
inline Words spread(uint32_t w) { return _mm_set1_epi64x(int64_t(w)); }
inline Words count_from(uint32_t w) { return _mm_add_epi32(spread(w), _mm_set_epi64x(1, 0)); }
inline Words multiply(Words a, Words b) { return _mm_mul_epu32(a, b); }
inline Words high(Words a) { return _mm_srli_epi64(a, 32); }
inline Words xor3(Words a, Words b, Words c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
inline Words add(Words a, Words b) { return _mm_add_epi32(a, b); }
inline void put(uint32_t *to, Words even, Words odd) {
  const Words low = _mm_set1_epi64x(0xFFFFFFFFll);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_or_si128(_mm_and_si128(even, low), _mm_slli_epi64(odd, 32)));
}
#endif

#if defined(__SSE2__)
// The words of `LANES * CHAINS` blocks from `block`: for Box-Muller, c0 and c2 of each block go to `a`, c1 and c3 to
// `b`.
inline void philox_words(uint32_t *a, uint32_t *b, uint32_t block, const Stream &s) {
  Words c0[CHAINS], c1[CHAINS], c2[CHAINS], c3[CHAINS];
  for (int i = 0; i < CHAINS; ++i) {
    c0[i] = count_from(block + uint32_t(LANES * i));
    c1[i] = spread(s.index), c2[i] = spread(s.draw), c3[i] = spread(s.tag);
  }
  const Words m0 = spread(0xD2511F53u), m1 = spread(0xCD9E8D57u), w0 = spread(0x9E3779B9u), w1 = spread(0xBB67AE85u);
  Words k0 = spread(s.k0), k1 = spread(s.k1);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < CHAINS; ++i) {
      const Words p0 = multiply(c0[i], m0), p1 = multiply(c2[i], m1);
      c0[i] = xor3(high(p1), c1[i], k0), c1[i] = p1;
      c2[i] = xor3(high(p0), c3[i], k1), c3[i] = p0;
    }
    k0 = add(k0, w0), k1 = add(k1, w1);
  }
  for (int i = 0; i < CHAINS; ++i) put(a + 2 * LANES * i, c0[i], c2[i]), put(b + 2 * LANES * i, c1[i], c3[i]);
}
#else
constexpr int LANES = 4, CHAINS = 2;
inline void philox_words(uint32_t *a, uint32_t *b, uint32_t block, const Stream &s) {
  for (int i = 0; i < LANES * CHAINS; ++i) {
    const Block c = philox({block + uint32_t(i), s.index, s.draw, s.tag}, s.k0, s.k1);
    a[2 * i] = c.c0, a[2 * i + 1] = c.c2, b[2 * i] = c.c1, b[2 * i + 1] = c.c3;
  }
}
#endif

}  // namespace
}  // namespace fastdiff
