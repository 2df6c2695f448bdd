/* Conway's Game of Life on a torus, and the convolution of the result with a small kernel. */
#include "parts.h"
#include <string.h>

#define SIDE (32 + 8 * VARIANT)

static uint8_t cells[2][SIDE][SIDE];

static int neighbours(uint8_t board[SIDE][SIDE], int row, int column)
{
    int count = 0;
    for (int down = -1; down <= 1; down++)
        for (int right = -1; right <= 1; right++)
            if (down || right)
                count += board[(row + down + SIDE) % SIDE][(column + right + SIDE) % SIDE];
    return count;
}

static void step(uint8_t from[SIDE][SIDE], uint8_t into[SIDE][SIDE])
{
    for (int row = 0; row < SIDE; row++)
        for (int column = 0; column < SIDE; column++) {
            int count = neighbours(from, row, column);
            into[row][column] = count == 3 || (count == 2 && from[row][column]);
        }
}

static uint32_t convolve(uint8_t board[SIDE][SIDE], const int16_t kernel[5][5])
{
    uint32_t sum = 0;
    for (int row = 2; row < SIDE - 2; row++)
        for (int column = 2; column < SIDE - 2; column++) {
            int32_t value = 0;
            for (int i = 0; i < 5; i++)
                for (int j = 0; j < 5; j++)
                    value += kernel[i][j] * board[row + i - 2][column + j - 2];
            sum = sum * 33 + (uint32_t)(value * value);
        }
    return sum;
}

uint32_t PART(life)(uint32_t seed)
{
    static const int16_t kernel[5][5] = {
        {1, 4, 6, 4, 1}, {4, 16, 24, 16, 4}, {6, 24, 36, 24, 6}, {4, 16, 24, 16, 4}, {1, 4, 6, 4, VARIANT}};
    memset(cells, 0, sizeof cells);
    for (int row = 0; row < SIDE; row++)
        for (int column = 0; column < SIDE; column++)
            cells[0][row][column] = next_random(&seed) % 3 == 0;
    for (int round = 0; round < 16; round++)
        step(cells[round % 2], cells[(round + 1) % 2]);
    return convolve(cells[0], kernel);
}
