/* test_measure.c - localisation, accuracy, groups and F1 against cases worked out by hand. */
#include "test.h"

static const xg_real not_a_number = (xg_real)NAN;

/* A 4x4 map, and the box of columns 1..2 and rows 0..1:
 *
 *      .  4  2  .        energy inside: 4 + 2 + 1 + 1 = 8
 *      1  1  1 -9        energy in all: 8 + 1 + 3 + 4 = 16, the negative pixel counts nothing
 *      .  .  .  3
 *      4  .  .  .
 */
static const xg_real hand_map[16] = { 0, 4, 2, 0,   1, 1, 1, -9,   0, 0, 0, 3,   4, 0, 0, 0 };
static const xg_real hand_mask[16] = { 0, 1, 1, 0,   0, 1, 1, 0,   0, 0, 0, 0,   0, 0, 0, 0 };
static const xg_real nothing[16] = { 0, 0, 0, 0,   0, 0, 0, 0,   0, 0, 0, 0,   0, 0, 0, 0 };
static const xg_real all[16] = { 1, 1, 1, 1,   1, 1, 1, 1,   1, 1, 1, 1,   1, 1, 1, 1 };

static void test_epg_by_hand(void)
{
    CHECK_NEAR(xg_epg(hand_map, hand_mask, 16), 8.0 / 16.0, 1e-15);
    CHECK_NEAR(xg_epg(hand_map, all, 16), 1.0, 1e-15);
    CHECK_NEAR(xg_epg(all, hand_mask, 16), 4.0 / 16.0, 1e-15);
    CHECK_NEAR(xg_epg(hand_mask, hand_mask, 16), 1.0, 1e-15);
}

static void test_epg_degenerate(void)
{
    xg_real negative[16], faint[16], broken[16];
    for (int i = 0; i < 16; i++) {
        negative[i] = -1;
        faint[i] = (xg_real)1e-9;                        /* 1.6e-8 in all: below 1e-7             */
        broken[i] = hand_map[i];
    }
    broken[15] = not_a_number;                           /* outside the mask, and still noticed   */
    CHECK(xg_epg(nothing, hand_mask, 16) == 0.0);
    CHECK(xg_epg(negative, hand_mask, 16) == 0.0);
    CHECK(xg_epg(faint, hand_mask, 16) == 0.0);
    CHECK(xg_epg(hand_map, nothing, 16) == 0.0);
    CHECK(xg_epg(hand_map, hand_mask, 0) == 0.0);
    CHECK(isnan(xg_epg(broken, hand_mask, 16)));
}

/* At half of the maximum 4, "4 2 1 1" inside and "1 3 4" outside give {4 | 3 4}: 2 is not above. */
static void test_iou_by_hand(void)
{
    CHECK_NEAR(xg_iou(hand_map, hand_mask, 16, 0.5), 1.0 / 6.0, 1e-15);
    CHECK_NEAR(xg_iou(hand_map, hand_mask, 16, 0.49), 2.0 / 6.0, 1e-15);
    CHECK_NEAR(xg_iou(hand_map, hand_mask, 16, 0.2), 4.0 / 7.0, 1e-15);
    CHECK_NEAR(xg_iou(hand_map, hand_mask, 16, -1.0), 4.0 / 16.0, 1e-15);
    CHECK(xg_iou(hand_map, hand_mask, 16, 1.0) == 0.0);
    CHECK_NEAR(xg_iou(hand_mask, hand_mask, 16, 0.5), 1.0, 1e-15);
}

/* The smallest value of A+ is the zero of the scale: 2 in [2,4] is 0, 3 is one half. */
static void test_iou_stretches_the_range(void)
{
    const xg_real map[4] = { 2, 3, (xg_real)3.5, 4 };
    const xg_real mask[4] = { 0, 0, 1, 1 };
    CHECK_NEAR(xg_iou(map, mask, 4, 0.5), 1.0, 1e-15);
    CHECK_NEAR(xg_iou(map, mask, 4, 0.45), 2.0 / 3.0, 1e-15);
    CHECK_NEAR(xg_iou(map, mask, 4, 0.8), 0.5, 1e-15);
}

static void test_iou_degenerate(void)
{
    xg_real broken[16], faint[16], flat[4];
    for (int i = 0; i < 16; i++) {
        broken[i] = i == 3 ? not_a_number : hand_map[i];
        faint[i] = hand_mask[i] * (xg_real)1e-10;        /* a range below 1e-7: over the maximum  */
    }
    for (int i = 0; i < 4; i++) flat[i] = (xg_real)(0.01 + 1e-8 * i);  /* over 0.01: nearly 1 */
    CHECK(flat[3] > flat[0]);
    CHECK_NEAR(xg_iou(flat, hand_mask, 4, 0.5), 2.0 / 4.0, 1e-15);
    CHECK(xg_iou(nothing, hand_mask, 16, 0.5) == 0.0);
    CHECK(xg_iou(nothing, nothing, 16, 0.5) == 0.0);
    CHECK_NEAR(xg_iou(all, hand_mask, 16, 0.5), 4.0 / 16.0, 1e-15);
    CHECK_NEAR(xg_iou(all, all, 16, 0.5), 1.0, 1e-15);
    CHECK_NEAR(xg_iou(faint, hand_mask, 16, 0.5), 1.0, 1e-15);
    CHECK(xg_iou(hand_map, nothing, 16, 0.5) == 0.0);
    CHECK(xg_iou(hand_map, hand_mask, 0, 0.5) == 0.0);
    CHECK(isnan(xg_iou(broken, hand_mask, 16, 0.5)));
    broken[3] = (xg_real)HUGE_VAL;                       /* inside the mask, or outside             */
    CHECK(isnan(xg_iou(broken, hand_mask, 16, 0.5)) && isnan(xg_epg(broken, hand_mask, 16)));
    CHECK(isnan(xg_iou(broken, nothing, 16, 0.5)) && isnan(xg_epg(broken, nothing, 16)));
    broken[3] = (xg_real)-HUGE_VAL;                      /* no positive part                        */
    CHECK_NEAR(xg_epg(broken, all, 16), 1.0, 1e-15);
}

/* Both scores lie in [0,1] for any map, do not change with its scale, and a map that lies where the
 * mask lies has the best of both. */
static void test_localisation_ranges(void)
{
    enum { COUNT = 50 };
    xg_rng rng = xg_rng_seed(4);
    for (int round = 0; round < 300; round++) {
        xg_real map[COUNT], mask[COUNT], scaled[COUNT];
        double positive = 0;
        for (int i = 0; i < COUNT; i++) {
            map[i] = (xg_real)xg_rng_normal(&rng);
            mask[i] = (xg_real)(xg_rng_below(&rng, 3) == 0);
            scaled[i] = 8 * map[i];
            positive += map[i] > 0 ? (double)map[i] : 0;
        }
        double epg = xg_epg(map, mask, COUNT), iou = xg_iou(map, mask, COUNT, 0.3);
        CHECK(epg >= 0 && epg <= 1 && iou >= 0 && iou <= 1);
        CHECK(positive > 0);
        CHECK_NEAR(xg_epg(scaled, mask, COUNT), epg, 1e-12);
        CHECK_NEAR(xg_iou(scaled, mask, COUNT, 0.3), iou, 1e-12);
    }
}

static void test_accuracy(void)
{
    const xg_real logits[12] = { 3, 1, 2,   0, 5, 5,   -1, -2, -3,   0, 0, 0 };
    const int right[4] = { 0, 1, 0, 0 }, mixed[4] = { 0, 2, 1, 2 }, outside[4] = { 3, -1, 7, 0 };
    CHECK_NEAR(xg_accuracy(logits, right, 4, 3), 1.0, 1e-15);      /* ties: the first best counts */
    CHECK_NEAR(xg_accuracy(logits, mixed, 4, 3), 0.25, 1e-15);
    CHECK_NEAR(xg_accuracy(logits, outside, 4, 3), 0.25, 1e-15);
    CHECK(isnan(xg_accuracy(logits, right, 0, 3)));
}

/* A network that returns NaN must not look right by accident. */
static void test_accuracy_of_nan(void)
{
    const xg_real logits[6] = { not_a_number, 1, 2,   9, not_a_number, not_a_number };
    for (int k = 0; k < 3; k++) {
        const int label[2] = { k, k };
        CHECK(xg_accuracy(logits, label, 2, 3) == 0.0);
    }
}

static void test_groups(void)
{
    xg_groups g;
    memset(&g, 0, sizeof g);
    CHECK(isnan(xg_groups_overall(&g)) && isnan(xg_groups_mean(&g)) && isnan(xg_groups_worst(&g)));
    for (int i = 0; i < 8; i++) xg_groups_add(&g, 0, true);        /* 8 of 8                      */
    for (int i = 0; i < 4; i++) xg_groups_add(&g, 1, i < 3);       /* 3 of 4                      */
    for (int i = 0; i < 4; i++) xg_groups_add(&g, 3, i < 1);       /* 1 of 4; nobody in group 2   */
    xg_groups_add(&g, -1, true);
    xg_groups_add(&g, 64, true);
    CHECK(g.count == 4);
    CHECK_NEAR(xg_groups_accuracy(&g, 0), 1.0, 1e-15);
    CHECK_NEAR(xg_groups_accuracy(&g, 1), 0.75, 1e-15);
    CHECK(isnan(xg_groups_accuracy(&g, 2)));
    CHECK(isnan(xg_groups_accuracy(&g, -1)) && isnan(xg_groups_accuracy(&g, 64)));
    CHECK_NEAR(xg_groups_overall(&g), 12.0 / 16.0, 1e-15);
    CHECK_NEAR(xg_groups_mean(&g), (1.0 + 0.75 + 0.25) / 3.0, 1e-15);
    CHECK_NEAR(xg_groups_worst(&g), 0.25, 1e-15);
}

/* The last place exists, and the worst group may come first or last. */
static void test_groups_at_the_edges(void)
{
    xg_groups g;
    memset(&g, 0, sizeof g);
    xg_groups_add(&g, 63, false);
    CHECK(g.count == 64 && xg_groups_worst(&g) == 0.0 && xg_groups_overall(&g) == 0.0);
    xg_groups_add(&g, 0, true);
    CHECK(xg_groups_worst(&g) == 0.0);
    CHECK_NEAR(xg_groups_mean(&g), 0.5, 1e-15);
}

static void test_f1(void)
{
    /* A logit of 0 counts as positive, NaN does not. */
    const xg_real logits[6] = { 2, 0, -1, 3, -2, not_a_number };
    const xg_real target[6] = { 1, 1, 1, 0, 0, 1 };
    xg_f1 f;
    memset(&f, 0, sizeof f);
    CHECK(xg_f1_value(&f) == 0.0);
    xg_f1_add(&f, logits, target, 6);
    CHECK(f.tp == 2 && f.fp == 1 && f.fn == 2);
    CHECK_NEAR(xg_f1_value(&f), 4.0 / 7.0, 1e-15);
    xg_f1_add(&f, logits, target, 2);                              /* batches add up              */
    CHECK(f.tp == 4 && f.fp == 1 && f.fn == 2);
    CHECK_NEAR(xg_f1_value(&f), 8.0 / 11.0, 1e-15);
}

static void test_f1_of_only_negatives(void)
{
    const xg_real logits[2] = { -1, -1 }, target[2] = { 0, 0 };
    xg_f1 f;
    memset(&f, 0, sizeof f);
    xg_f1_add(&f, logits, target, 2);
    CHECK(xg_f1_value(&f) == 0.0);
}

TEST_MAIN(
    TEST(test_epg_by_hand)
    TEST(test_epg_degenerate)
    TEST(test_iou_by_hand)
    TEST(test_iou_stretches_the_range)
    TEST(test_iou_degenerate)
    TEST(test_localisation_ranges)
    TEST(test_accuracy)
    TEST(test_accuracy_of_nan)
    TEST(test_groups)
    TEST(test_groups_at_the_edges)
    TEST(test_f1)
    TEST(test_f1_of_only_negatives)
)
