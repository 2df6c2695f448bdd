/* A treap and a hash table that are given the same keys and must say the same of them. */
#include "parts.h"
#include <stdlib.h>

#define NODES (300 * VARIANT)
#define SLOTS 4096

struct node {
    uint32_t key, weight;
    struct node *left, *right;
};

static struct node nodes[NODES];
static uint32_t slots[SLOTS];
static uint8_t used[SLOTS];

static void split(struct node *tree, uint32_t key, struct node **left, struct node **right)
{
    if (!tree) {
        *left = *right = NULL;
    } else if (tree->key < key) {
        split(tree->right, key, &tree->right, right);
        *left = tree;
    } else {
        split(tree->left, key, left, &tree->left);
        *right = tree;
    }
}

static struct node *join(struct node *left, struct node *right)
{
    if (!left || !right)
        return left ? left : right;
    if (left->weight > right->weight) {
        left->right = join(left->right, right);
        return left;
    }
    right->left = join(left, right->left);
    return right;
}

static int in_tree(const struct node *tree, uint32_t key)
{
    while (tree && tree->key != key)
        tree = key < tree->key ? tree->left : tree->right;
    return tree != NULL;
}

static size_t slot_of(uint32_t key)
{
    size_t slot = (key * 0x9e3779b1u) >> 20;
    while (used[slot] && slots[slot] != key)
        slot = (slot + 1) % SLOTS;
    return slot;
}

static uint32_t fold(const struct node *tree, uint32_t sum, uint32_t depth)
{
    if (!tree)
        return sum;
    sum = fold(tree->left, sum, depth + 1);
    sum = sum * 131 + tree->key * depth;
    return fold(tree->right, sum, depth + 1);
}

uint32_t PART(tree)(uint32_t seed)
{
    struct node *root = NULL, *left, *right;
    size_t count = 0;
    while (count < NODES) {
        uint32_t key = next_random(&seed) % (4 * NODES);
        size_t slot = slot_of(key);
        if (in_tree(root, key) != used[slot])
            abort();
        if (used[slot])
            continue;
        used[slot] = 1;
        slots[slot] = key;
        nodes[count].key = key;
        nodes[count].weight = next_random(&seed);
        split(root, key, &left, &right);
        root = join(join(left, &nodes[count]), right);
        count++;
    }
    return fold(root, VARIANT, 1);
}
