/* What the test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batchnorm.h"

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);       \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

#define EXPECT(status, call)                                                              \
    do {                                                                                  \
        batchnorm_status got = (call);                                                    \
        if (got != (status)) {                                                            \
            fprintf(stderr, "%s:%d: %s is %d (%s), expected %s\n", __FILE__, __LINE__,    \
                    #call, (int)got, batchnorm_status_message(got), #status);             \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

#define OK(call) EXPECT(BATCHNORM_OK, call)

static const char *const DTYPES[4] = {"f32", "f64", "f16", "bf16"};

static inline size_t size_of(uint32_t dtype) {
    return dtype == BATCHNORM_F64 ? 8 : dtype == BATCHNORM_F32 ? 4 : 2;
}

static inline size_t size_of_parameter(uint32_t dtype) {
    return dtype == BATCHNORM_F64 ? 8 : 4;
}

static inline void *get_memory(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    CHECK(p != NULL);
    memset(p, 0x55, bytes);
    return p;
}

/* Stores a multiple of 1/16 below 8 in magnitude, which every dtype has exactly. */
static inline void put(uint32_t dtype, void *at, size_t i, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (dtype == BATCHNORM_F32) {
        ((float *)at)[i] = v;
    } else if (dtype == BATCHNORM_F64) {
        ((double *)at)[i] = v;
    } else if (dtype == BATCHNORM_BF16) {
        ((uint16_t *)at)[i] = (uint16_t)(bits >> 16);
    } else {
        uint32_t exponent = bits >> 23 & 255, fraction = bits >> 13 & 1023;
        uint32_t magnitude = exponent ? (exponent - 112) << 10 | fraction : 0;
        ((uint16_t *)at)[i] = (uint16_t)(bits >> 31 << 15 | magnitude);
    }
}

/* Noise: multiples of 1/16 from -8 to below 8. */
static inline void *get_noise(uint32_t dtype, size_t n, uint32_t seed) {
    void *p = get_memory(n * size_of(dtype));
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        put(dtype, p, i, (float)((int32_t)(seed >> 24) - 128) / 16.0f);
    }
    return p;
}

/* FNV-1a. */
static inline uint64_t hash(const void *p, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) {
        h = (h ^ ((const unsigned char *)p)[i]) * 0x100000001b3u;
    }
    return h;
}

static inline batchnorm_desc get_desc(uint32_t layout, uint32_t dtype, size_t batch, size_t channels,
                                      size_t spatial) {
    batchnorm_desc d;
    memset(&d, 0, sizeof d);
    d.struct_size = sizeof d;
    d.layout = layout;
    d.dtype = dtype;
    d.epsilon = 1e-5;
    d.batch = batch;
    d.channels = channels;
    d.spatial = spatial;
    return d;
}

#endif
