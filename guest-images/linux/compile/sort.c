/* The same numbers sorted in four ways, which must agree. */
#include "parts.h"
#include <stdlib.h>
#include <string.h>

#define COUNT (512 * VARIANT)

static void swap(uint32_t *left, uint32_t *right)
{
    uint32_t kept = *left;
    *left = *right;
    *right = kept;
}

static void quick(uint32_t *from, uint32_t *to)
{
    while (to - from > 1) {
        uint32_t pivot = from[(to - from) / 2];
        uint32_t *left = from, *right = to - 1;
        while (left <= right) {
            while (*left < pivot)
                left++;
            while (*right > pivot)
                right--;
            if (left <= right)
                swap(left++, right--);
        }
        quick(from, right + 1);
        from = left;
    }
}

static void sift(uint32_t *heap, size_t at, size_t count)
{
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            return;
        if (child + 1 < count && heap[child + 1] > heap[child])
            child++;
        if (heap[at] >= heap[child])
            return;
        swap(&heap[at], &heap[child]);
        at = child;
    }
}

static void heap(uint32_t *numbers, size_t count)
{
    for (size_t at = count / 2; at-- > 0;)
        sift(numbers, at, count);
    while (count > 1) {
        swap(&numbers[0], &numbers[--count]);
        sift(numbers, 0, count);
    }
}

static void merge(uint32_t *numbers, uint32_t *room, size_t count)
{
    size_t half = count / 2, left = 0, right = half, into = 0;
    if (count < 2)
        return;
    merge(numbers, room, half);
    merge(numbers + half, room, count - half);
    while (left < half && right < count)
        room[into++] = numbers[left] <= numbers[right] ? numbers[left++] : numbers[right++];
    while (left < half)
        room[into++] = numbers[left++];
    while (right < count)
        room[into++] = numbers[right++];
    memcpy(numbers, room, count * sizeof *numbers);
}

static void radix(uint32_t *numbers, uint32_t *room, size_t count)
{
    for (int shift = 0; shift < 32; shift += 8) {
        size_t starts[257] = {0};
        for (size_t i = 0; i < count; i++)
            starts[((numbers[i] >> shift) & 0xff) + 1]++;
        for (int i = 0; i < 256; i++)
            starts[i + 1] += starts[i];
        for (size_t i = 0; i < count; i++)
            room[starts[(numbers[i] >> shift) & 0xff]++] = numbers[i];
        memcpy(numbers, room, count * sizeof *numbers);
    }
}

uint32_t PART(sort)(uint32_t seed)
{
    static uint32_t numbers[4][COUNT], room[COUNT];
    uint32_t sum = 0;
    for (size_t i = 0; i < COUNT; i++)
        numbers[0][i] = next_random(&seed);
    for (int i = 1; i < 4; i++)
        memcpy(numbers[i], numbers[0], sizeof numbers[0]);
    quick(numbers[0], numbers[0] + COUNT);
    heap(numbers[1], COUNT);
    merge(numbers[2], room, COUNT);
    radix(numbers[3], room, COUNT);
    for (int i = 1; i < 4; i++)
        if (memcmp(numbers[i], numbers[0], sizeof numbers[0]) != 0)
            abort();
    for (size_t i = 0; i < COUNT; i++)
        sum = sum * 31 + numbers[0][i];
    return sum;
}
