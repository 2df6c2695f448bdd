/* Two checksums of pseudo-random data: CRC-32 with a table made at run time, and a Merkle-Damgard toy. */
#include "parts.h"

#define BYTES (4096 * VARIANT)

static uint32_t table[8][256];

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) ? 0xedb88320u : 0);
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int slice = 1; slice < 8; slice++)
            table[slice][i] = (table[slice - 1][i] >> 8) ^ table[0][table[slice - 1][i] & 0xff];
}

static uint32_t crc32(const uint8_t *data, size_t bytes)
{
    uint32_t crc = ~0u;
    while (bytes >= 8) {
        uint32_t low = crc ^ ((uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
                              (uint32_t)data[3] << 24);
        crc = table[7][low & 0xff] ^ table[6][(low >> 8) & 0xff] ^ table[5][(low >> 16) & 0xff] ^
              table[4][low >> 24] ^ table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^
              table[0][data[7]];
        data += 8;
        bytes -= 8;
    }
    while (bytes--)
        crc = (crc >> 8) ^ table[0][(crc ^ *data++) & 0xff];
    return ~crc;
}

static inline uint32_t rotate(uint32_t x, int by)
{
    return (x << by) | (x >> (32 - by));
}

static void mix_block(uint32_t state[8], const uint8_t block[64])
{
    uint32_t words[64], s[8];
    for (int i = 0; i < 16; i++)
        words[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
                   (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        words[i] = rotate(words[i - 15], 7) + rotate(words[i - 2], 17) + words[i - 16] + words[i - 7];
    for (int i = 0; i < 8; i++)
        s[i] = state[i];
    for (int i = 0; i < 64; i++) {
        uint32_t one = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
                       words[i] + 0x9e3779b9u * (uint32_t)(i + VARIANT);
        uint32_t two = (rotate(s[0], 2) ^ rotate(s[0], 13)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (int j = 7; j > 0; j--)
            s[j] = s[j - 1];
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

uint32_t PART(digest)(uint32_t seed)
{
    static uint8_t data[BYTES];
    uint32_t state[8] = {1, 2, 3, 4, 5, 6, 7, VARIANT};
    uint32_t sum;
    make_table();
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (uint8_t)next_random(&seed);
    sum = crc32(data, BYTES);
    for (size_t i = 0; i < BYTES; i += 64)
        mix_block(state, data + i);
    for (int i = 0; i < 8; i++)
        sum = rotate(sum, 5) ^ state[i];
    return sum;
}
