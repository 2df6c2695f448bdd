/* The parts of the compile workload: each is compiled once a variant, and its names carry the variant. */
#ifndef PARTS_H
#define PARTS_H

#include <stddef.h>
#include <stdint.h>

#ifndef VARIANT
#define VARIANT 1
#endif
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define PART(name) JOIN(name, VARIANT)

typedef uint32_t part(uint32_t seed);

/* Small, fast and the same everywhere. */
static inline uint32_t next_random(uint32_t *state)
{
    uint32_t x = *state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return *state = x;
}

#endif
