/* Regular expressions (literals, . * + ? and groups of alternatives) matched by backtracking; words compared by
 * edit distance. */
#include "parts.h"
#include <string.h>

static int match_here(const char *pattern, const char *text, const char **end);

static int match_one(char pattern, char byte)
{
    return byte && (pattern == '.' || pattern == byte);
}

static int match_repeat(char one, int least, int most, const char *pattern, const char *text, const char **end)
{
    int count = 0;
    while (count < most && match_one(one, text[count]))
        count++;
    for (; count >= least; count--)
        if (match_here(pattern, text + count, end))
            return 1;
    return 0;
}

static int match_group(const char *pattern, const char *text, const char **end)
{
    const char *close = strchr(pattern, ')');
    const char *from = pattern;
    if (!close)
        return 0;
    while (from <= close) {
        const char *to = from;
        while (to < close && *to != '|')
            to++;
        if (strncmp(from, text, (size_t)(to - from)) == 0 && match_here(close + 1, text + (to - from), end))
            return 1;
        from = to + 1;
    }
    return 0;
}

static int match_here(const char *pattern, const char *text, const char **end)
{
    if (*pattern == 0) {
        *end = text;
        return 1;
    }
    if (*pattern == '(')
        return match_group(pattern + 1, text, end);
    switch (pattern[1]) {
    case '*':
        return match_repeat(pattern[0], 0, 64, pattern + 2, text, end);
    case '+':
        return match_repeat(pattern[0], 1, 64, pattern + 2, text, end);
    case '?':
        return match_repeat(pattern[0], 0, 1, pattern + 2, text, end);
    default:
        return match_one(pattern[0], *text) && match_here(pattern + 1, text + 1, end);
    }
}

static int distance(const char *left, const char *right)
{
    int row[65], length = (int)strlen(right);
    for (int i = 0; i <= length; i++)
        row[i] = i;
    for (int i = 1; *left; left++, i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= length; j++) {
            int best = diagonal + (*left != right[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[length];
}

uint32_t PART(match)(uint32_t seed)
{
    static const char *const patterns[] = {"a+b", "ab*a", ".?c(ab|ba|c)", "(aa|bb)c+", "a.*c", "c(a|b)a?b*"};
    uint32_t sum = VARIANT;
    char last[65] = "abc";
    for (int round = 0; round < 100 * VARIANT; round++) {
        char text[65];
        int length = 1 + (int)(next_random(&seed) % 64);
        const char *end;
        for (int i = 0; i < length; i++)
            text[i] = (char)('a' + next_random(&seed) % 3);
        text[length] = 0;
        for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
            for (int from = 0; from < length; from++)
                if (match_here(patterns[i], text + from, &end))
                    sum = sum * 37 + (uint32_t)(end - text);
        sum ^= (uint32_t)distance(last, text) << (round % 24);
        memcpy(last, text, sizeof last);
    }
    return sum;
}
