/* Runs every part in every variant and prints one number that follows from all. */
#include "parts.h"
#include <stdio.h>

#define DECLARE(variant)                                                                                  \
    part digest_##variant, expression_##variant, life_##variant, match_##variant, sort_##variant,          \
        tree_##variant;
#define LIST(variant)                                                                                     \
    digest_##variant, expression_##variant, life_##variant, match_##variant, sort_##variant, tree_##variant,

#if ROUNDS == 1
#define ALL(each) each(1)
#elif ROUNDS == 2
#define ALL(each) each(1) each(2)
#elif ROUNDS == 3
#define ALL(each) each(1) each(2) each(3)
#elif ROUNDS == 4
#define ALL(each) each(1) each(2) each(3) each(4)
#else
#error "ROUNDS is 1 to 4"
#endif

ALL(DECLARE)

int main(void)
{
    static part *const parts[] = {ALL(LIST)};
    uint32_t sum = 1;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        sum = sum * 16777619u ^ parts[i](0x1234567u + (uint32_t)i);
    printf("%08x\n", sum);
    return 0;
}
