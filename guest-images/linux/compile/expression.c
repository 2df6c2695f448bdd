/* Makes random arithmetic expressions as text, parses and evaluates them by recursive descent. */
#include "parts.h"

#define TEXT_MAX 4096
#define DEPTH_MAX (4 + VARIANT)

struct text {
    char bytes[TEXT_MAX];
    size_t length;
};

static void put(struct text *text, char byte)
{
    if (text->length + 1 < TEXT_MAX)
        text->bytes[text->length++] = byte;
    text->bytes[text->length] = 0;
}

static void put_number(struct text *text, uint32_t number)
{
    char digits[10];
    int count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    while (count > 0)
        put(text, digits[--count]);
}

static void make(struct text *text, uint32_t *seed, int depth)
{
    static const char operators[] = "+-*/%&|^";
    if (depth == 0 || text->length > TEXT_MAX / 2) {
        put_number(text, next_random(seed) % 1000);
        return;
    }
    put(text, '(');
    make(text, seed, depth - 1);
    put(text, operators[next_random(seed) % 8]);
    make(text, seed, depth - 1);
    put(text, ')');
}

static uint32_t parse_or(const char **at);

static uint32_t parse_atom(const char **at)
{
    uint32_t value = 0;
    if (**at == '(') {
        ++*at;
        value = parse_or(at);
        if (**at == ')')
            ++*at;
        return value;
    }
    if (**at == '-') {
        ++*at;
        return 0u - parse_atom(at);
    }
    while (**at >= '0' && **at <= '9')
        value = value * 10 + (uint32_t)(*(*at)++ - '0');
    return value;
}

static uint32_t parse_product(const char **at)
{
    uint32_t value = parse_atom(at);
    for (;;) {
        uint32_t right;
        switch (**at) {
        case '*':
            ++*at;
            value *= parse_atom(at);
            break;
        case '/':
            ++*at;
            right = parse_atom(at);
            value = right ? value / right : ~value;
            break;
        case '%':
            ++*at;
            right = parse_atom(at);
            value = right ? value % right : value;
            break;
        default:
            return value;
        }
    }
}

static uint32_t parse_sum(const char **at)
{
    uint32_t value = parse_product(at);
    for (;;) {
        switch (**at) {
        case '+':
            ++*at;
            value += parse_product(at);
            break;
        case '-':
            ++*at;
            value -= parse_product(at);
            break;
        default:
            return value;
        }
    }
}

static uint32_t parse_and(const char **at)
{
    uint32_t value = parse_sum(at);
    while (**at == '&') {
        ++*at;
        value &= parse_sum(at);
    }
    return value;
}

static uint32_t parse_xor(const char **at)
{
    uint32_t value = parse_and(at);
    while (**at == '^') {
        ++*at;
        value ^= parse_and(at);
    }
    return value;
}

static uint32_t parse_or(const char **at)
{
    uint32_t value = parse_xor(at);
    while (**at == '|') {
        ++*at;
        value |= parse_xor(at);
    }
    return value;
}

uint32_t PART(expression)(uint32_t seed)
{
    static struct text text;
    uint32_t sum = 0;
    for (int round = 0; round < 20; round++) {
        const char *at = text.bytes;
        text.length = 0;
        make(&text, &seed, DEPTH_MAX);
        sum = sum * 31 + parse_or(&at);
    }
    return sum;
}
