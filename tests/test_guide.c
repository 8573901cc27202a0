/* test_guide.c - losses on maps against closed forms (Rao 2023, eq. 3-6),
 * their derivatives to third order, degenerate inputs, and masks from boxes. */
#include "test.h"

static const xg_loss every_loss[4] = { XG_LOSS_ENERGY, XG_LOSS_L1, XG_LOSS_PPCE, XG_LOSS_RRR };

static xg_guide_options options(xg_loss loss)
{
    xg_guide_options o;
    memset(&o, 0, sizeof o);
    o.loss = loss;
    return o;
}

static xg_guide_options raw(xg_loss loss)
{
    xg_guide_options o = options(loss);
    o.raw = true;
    return o;
}

static xg_tensor *plane(xg_tape *t, int n, int h, int w, const xg_real *data)
{
    return xg_leaf(t, xg_shape4(n, 1, h, w), data);
}

/* The loss of one 1 x count map. */
static double loss_of(xg_tape *t, xg_guide_options o, const xg_real *map, const xg_real *mask,
                      int count)
{
    double value = xg_item(xg_guide(plane(t, 1, 1, count, map), plane(t, 1, 1, count, mask), &o));
    CHECK_OK(t);
    return value;
}

/* Its gradient by the map. */
static void gradient_of(xg_tape *t, xg_guide_options o, const xg_real *map, const xg_real *mask,
                        int count, xg_real *out)
{
    xg_tensor *a = plane(t, 1, 1, count, map);
    xg_tensor *loss = xg_guide(a, plane(t, 1, 1, count, mask), &o);
    xg_read(xg_grad(loss, a), out, (size_t)count);
    CHECK_OK(t);
}

/* ---- Energy ----------------------------------------------------------------------------- */

static void test_energy_values(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real mask[8] = { 1, 1, 1, 0, 0, 0, 0, 0 };
    const xg_real uniform[8] = { 2, 2, 2, 2, 2, 2, 2, 2 };
    const xg_real inside[8] = { 1, 2, 0, 0, 0, 0, 0, 0 };
    const xg_real outside[8] = { 0, 0, 0, 0, 5, 0, 0, 1 };
    const xg_real negative[8] = { -1, -1, -1, -1, -1, -1, -1, -1 };
    const xg_real mixed[8] = { 3, -7, 1, 2, -1, 2, 0, 0 };
    const xg_real none[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    xg_guide_options o = options(XG_LOSS_ENERGY);
    CHECK_NEAR(loss_of(t, o, uniform, mask, 8), 1.0 - 3.0 / 8.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, o, inside, mask, 8), 0.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, o, outside, mask, 8), 1.0, 0.0);
    CHECK_NEAR(loss_of(t, o, none, mask, 8), 1.0, 0.0);
    CHECK_NEAR(loss_of(t, o, negative, mask, 8), 1.0, 0.0);
    CHECK_NEAR(loss_of(t, o, mixed, mask, 8), 1.0 - 4.0 / 8.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, o, uniform, none, 8), 1.0, 0.0);
    xg_tape_free(t);
}

/* -[A >= 0] (M D - N) / D^2, passing at exactly 0; and <gradient, A> = 0 for A >= 0: scale-free. */
static void test_energy_gradient(void)
{
    enum { COUNT = 24 };
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(1);
    for (int round = 0; round < 20; round++) {
        xg_real map[COUNT], mask[COUNT], g[COUNT];
        double d = 0, n = 0, along = 0;
        bool positive = round % 2 == 0;
        for (int i = 0; i < COUNT; i++) {
            map[i] = (xg_real)xg_rng_normal(&rng);
            if (positive && map[i] < 0) map[i] = -map[i];
            if (i % 7 == 0) map[i] = 0;
            mask[i] = (xg_real)xg_rng_below(&rng, 2);
            d += map[i] > 0 ? (double)map[i] : 0;
            n += map[i] > 0 ? (double)(mask[i] * map[i]) : 0;
        }
        gradient_of(t, options(XG_LOSS_ENERGY), map, mask, COUNT, g);
        for (int i = 0; i < COUNT; i++) {
            double expected = map[i] >= 0 ? -((double)mask[i] * d - n) / (d * d) : 0.0;
            CHECK_NEAR(g[i], expected, TOL(1e-6, 1e-13));
            along += (double)(g[i] * map[i]);
        }
        if (positive) CHECK_NEAR(along, 0.0, TOL(1e-6, 1e-14));
        xg_tape_reset(t);
    }
    xg_tape_free(t);
}

/* Below D = 1e-7 the loss is 1 - N and its gradient -M, decided for each sample by itself. */
static void test_energy_of_faint_maps(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real map[12] = { 1, 3, 0, 0,   0, 0, 0, 0,   (xg_real)4e-8, (xg_real)2e-8, 0, -1 };
    const xg_real mask[12] = { 1, 0, 0, 0,   1, 0, 1, 0,   1, 0, 0, 1 };
    xg_tensor *a = plane(t, 3, 2, 2, map), *m = plane(t, 3, 2, 2, mask);
    xg_guide_options o = options(XG_LOSS_ENERGY);
    xg_tensor *loss = xg_guide(a, m, &o);
    CHECK_NEAR(xg_item(loss), (1 - 0.25) + 1 + (1 - 4e-8), TOL(1e-6, 1e-14));
    const xg_real *g = xg_data(xg_grad(loss, a));
    CHECK_NEAR(g[0], -(4.0 - 1.0) / 16.0, TOL(1e-7, 1e-15));
    CHECK_NEAR(g[1], 1.0 / 16.0, TOL(1e-7, 1e-15));
    for (int i = 4; i < 11; i++) CHECK(g[i] == -mask[i]);
    CHECK(g[11] == 0);                                   /* negative: clamped                     */
    CHECK_OK(t);
    xg_tape_free(t);
}

/* ---- L1 --------------------------------------------------------------------------------- */

static void test_l1_values(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real mask[4] = { 1, 0, 1, 0 }, scaled[4] = { 3, 0, 3, -2 }, none[4] = { 0, 0, 0, 0 };
    const xg_real half[4] = { (xg_real)0.5, (xg_real)0.5, (xg_real)0.5, (xg_real)0.5 };
    const xg_real mixed[4] = { 1, 2, 4, -8 };            /* over its maximum: 1/4 1/2 1 0         */
    CHECK_NEAR(loss_of(t, options(XG_LOSS_L1), scaled, mask, 4), 0.0, 0.0);
    CHECK_NEAR(loss_of(t, raw(XG_LOSS_L1), half, mask, 4), 0.5, TOL(1e-7, 1e-15));
    CHECK_NEAR(loss_of(t, options(XG_LOSS_L1), half, mask, 4), 0.5, TOL(1e-7, 1e-15));
    CHECK_NEAR(loss_of(t, options(XG_LOSS_L1), mixed, mask, 4), (0.75 + 0.5) / 4,
               TOL(1e-7, 1e-15));
    CHECK_NEAR(loss_of(t, options(XG_LOSS_L1), none, mask, 4), 0.5, 0.0);
    xg_tape_free(t);
}

static void test_l1_gradient(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real map[5] = { (xg_real)0.25, (xg_real)0.5, 1, 0, (xg_real)1.5 };
    const xg_real mask[5] = { 1, 0, 1, 0, 1 };
    const double sign[5] = { -1, 1, 0, 0, 1 };           /* of map - mask; 0 where they agree     */
    xg_real g[5];
    gradient_of(t, raw(XG_LOSS_L1), map, mask, 5, g);
    for (int i = 0; i < 5; i++) CHECK_NEAR(g[i], sign[i] / 5, TOL(1e-7, 1e-15));
    xg_tape_free(t);
}

/* ---- PPCE ------------------------------------------------------------------------------- */

static void test_ppce_values(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real mask[4] = { 1, 1, 0, 0 }, ones[4] = { 5, 5, -3, 2 }, none[4] = { 0, 0, 0, 0 };
    const xg_real e = (xg_real)exp(-1.0);
    const xg_real deep[4] = { e, e, 1, e * e }, mixed[4] = { 1, 0, 0, 0 };
    CHECK_NEAR(loss_of(t, options(XG_LOSS_PPCE), ones, mask, 4), 0.0, 0.0);
    CHECK_NEAR(loss_of(t, options(XG_LOSS_PPCE), deep, mask, 4), 1.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, raw(XG_LOSS_PPCE), deep, mask, 4), 1.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, options(XG_LOSS_PPCE), none, mask, 4), 100.0, 0.0);
    CHECK_NEAR(loss_of(t, options(XG_LOSS_PPCE), mixed, mask, 4), 50.0, 0.0);
    CHECK_NEAR(loss_of(t, options(XG_LOSS_PPCE), ones, none, 4), 0.0, 0.0);
    for (int k = 1; k <= 80; k += 13) {                  /* the floor lies below e^-87            */
        const xg_real small[4] = { (xg_real)exp(-(double)k), 1, 0, 0 };
        CHECK_NEAR(loss_of(t, raw(XG_LOSS_PPCE), small, mask, 4), k / 2.0, TOL(1e-6, 1e-14));
    }
    xg_tape_free(t);
}

/* -M / (A |M|) between 0 and 1; 0 at 0, at 1 and beyond both. */
static void test_ppce_gradient(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real map[8] = { (xg_real)0.5, (xg_real)0.125, 0, 1, -1, 2, (xg_real)0.25, 0 };
    const xg_real mask[8] = { 1, 1, 1, 1, 1, 1, 0, 0 };
    xg_real g[8];
    gradient_of(t, raw(XG_LOSS_PPCE), map, mask, 8, g);
    CHECK_NEAR(g[0], -2.0 / 6, TOL(1e-6, 1e-15));
    CHECK_NEAR(g[1], -8.0 / 6, TOL(1e-6, 1e-15));
    for (int i = 2; i < 8; i++) CHECK(g[i] == 0);
    xg_tape_free(t);
}

/* A sample without a mask counts neither in the sum nor in the number of samples. */
static void test_ppce_skips_empty_masks(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real map[6] = { 1, (xg_real)0.5, 1, 2, 1, (xg_real)0.25 };
    const xg_real mask[6] = { 0, 1, 0, 0, 0, 1 };
    xg_tensor *a = plane(t, 3, 1, 2, map), *m = plane(t, 3, 1, 2, mask);
    xg_guide_options o = options(XG_LOSS_PPCE);
    xg_tensor *sum = xg_guide(a, m, &o);
    CHECK_NEAR(xg_item(sum), log(2.0) + log(4.0), TOL(1e-6, 1e-14));
    const xg_real *g = xg_data(xg_grad(sum, a));
    CHECK(g[2] == 0 && g[3] == 0 && g[1] != 0);
    o.mean = true;
    CHECK_NEAR(xg_item(xg_guide(a, m, &o)), (log(2.0) + log(4.0)) / 2, TOL(1e-6, 1e-14));
    CHECK_OK(t);
    xg_tape_free(t);
}

/* ---- RRR* ------------------------------------------------------------------------------- */

static void test_rrr_values_and_gradient(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real mask[6] = { 1, 1, 0, 0, 0, 0 }, inside[6] = { -2, 3, 0, 0, 0, 0 };
    const xg_real flat[6] = { -4, -4, -4, -4, -4, -4 }, mixed[6] = { 1, 4, -2, 1, 0, 2 };
    const xg_real full[6] = { 1, 1, 1, 1, 1, 1 };
    xg_real g[6];
    CHECK_NEAR(loss_of(t, options(XG_LOSS_RRR), inside, mask, 6), 0.0, 0.0);
    CHECK_NEAR(loss_of(t, options(XG_LOSS_RRR), flat, mask, 6), 4.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, options(XG_LOSS_RRR), mixed, mask, 6), (4.0 + 1.0 + 4.0) / 16,
               TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, raw(XG_LOSS_RRR), mixed, mask, 6), 9.0, TOL(1e-6, 1e-14));
    CHECK_NEAR(loss_of(t, options(XG_LOSS_RRR), mixed, full, 6), 0.0, 0.0);
    gradient_of(t, raw(XG_LOSS_RRR), mixed, mask, 6, g);
    for (int i = 0; i < 6; i++) {
        CHECK_NEAR(g[i], 2 * (1 - (double)mask[i]) * (double)mixed[i], TOL(1e-6, 1e-14));
    }
    xg_tape_free(t);
}

/* ---- through post-processing ----------------------------------------------------------------- */

typedef struct loss_case { xg_guide_options o; xg_tensor *mask; } loss_case;

static xg_tensor *loss_function(xg_tensor *const *x, int count, void *user)
{
    const loss_case *c = (const loss_case *)user;
    (void)count;
    return xg_guide(x[0], c->mask, &c->o);
}

/* Values at least 0.1 from 0, where clamps and absolute values have kinks. */
static xg_tensor *clear_map(xg_tape *t, xg_shape s, xg_rng *rng)
{
    xg_tensor *x = xg_randn(t, s, rng);
    xg_real *data = xg_leaf_data(x);
    for (size_t i = 0; data && i < xg_size(x); i++) {
        data[i] = data[i] + (xg_real)(data[i] < 0 ? -0.1 : 0.1);
    }
    return x;
}

/* Derivatives of order 1, 2, 3 of each loss by the map, at the map's own size and up-sampled:
 * through the clamp, the maximum (not detached), the division and the interpolation. */
static void test_third_order(void)
{
    if (!IS_DOUBLE) SKIP("gradient checks need XG_DOUBLE");
    const xg_real weight[3] = { (xg_real)0.5, 0, 2 };
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(2);
    for (int i = 0; i < 16; i++) {
        loss_case c;
        c.o = options(every_loss[i % 4]);
        c.o.mean = (i / 4) % 2 == 1;
        c.o.weight = i >= 8 ? weight : NULL;
        int size = (i / 4) % 2 == 0 ? 5 : 9;
        c.mask = random_mask(t, xg_shape4(3, 1, size, size), &rng);
        xg_tensor *map = clear_map(t, xg_shape4(3, 1, 5, 5), &rng);
        double worst = xg_gradcheck(loss_function, &c, &map, 1, 3, 0, &rng);
        CHECK_OK(t);
        CHECK_NEAR(worst, 0.0, 1e-6);
        xg_tape_reset(t);
    }
    xg_tape_free(t);
}

/* The same for maps that are taken as they are. */
static void test_third_order_raw(void)
{
    if (!IS_DOUBLE) SKIP("gradient checks need XG_DOUBLE");
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(3);
    for (int i = 0; i < 4; i++) {
        loss_case c;
        c.o = raw(every_loss[i]);
        c.mask = random_mask(t, xg_shape4(2, 1, 4, 4), &rng);
        xg_tensor *map = xg_leaf(t, xg_shape4(2, 1, 4, 4), NULL);
        xg_real *data = xg_leaf_data(map);
        for (size_t k = 0; k < xg_size(map); k++) {
            data[k] = (xg_real)(0.1 + 0.8 * xg_rng_uniform(&rng));
        }
        double worst = xg_gradcheck(loss_function, &c, &map, 1, 3, 0, &rng);
        CHECK_OK(t);
        CHECK_NEAR(worst, 0.0, 1e-6);
    }
    xg_tape_free(t);
}

/* Post-processing happens at the map's size and before up-sampling, with the loss's own flags. */
static void test_post_defaults(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(5);
    xg_tensor *map = clear_map(t, xg_shape4(2, 1, 3, 4), &rng);
    xg_tensor *mask = random_mask(t, xg_shape4(2, 1, 9, 11), &rng);
    for (int i = 0; i < 4; i++) {
        xg_guide_options o = options(every_loss[i]), r = raw(every_loss[i]);
        xg_post post = xg_loss_post(every_loss[i]);
        CHECK(post.positive == (i == 1 || i == 2) && post.normalise == (i > 0));
        CHECK(post.h == 0 && post.w == 0);
        post.h = 9;
        post.w = 11;
        double whole = xg_item(xg_guide(map, mask, &o));
        double parts = xg_item(xg_guide(xg_postprocess(map, &post), mask, &r));
        CHECK(whole == parts);
    }
    CHECK(!strcmp(xg_loss_name(XG_LOSS_ENERGY), "energy"));
    CHECK(!strcmp(xg_loss_name(XG_LOSS_L1), "l1"));
    CHECK(!strcmp(xg_loss_name(XG_LOSS_PPCE), "ppce"));
    CHECK(!strcmp(xg_loss_name(XG_LOSS_RRR), "rrr"));
    CHECK_OK(t);
    xg_tape_free(t);
}

/* ---- batches --------------------------------------------------------------------------------- */

/* A batch is the weighted sum of its samples; mean divides by how many count. */
static void test_weights(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(6);
    const xg_real weight[4] = { 1, 0, (xg_real)2.5, (xg_real)0.5 };
    for (int i = 0; i < 4; i++) {
        xg_tensor *map = clear_map(t, xg_shape4(4, 1, 4, 4), &rng);
        xg_tensor *mask = random_mask(t, xg_shape4(4, 1, 4, 4), &rng);
        xg_guide_options o = options(every_loss[i]);
        double sum = 0, weighted = 0;
        for (int k = 0; k < 4; k++) {
            double one = loss_of(t, o, xg_data(map) + 16 * k, xg_data(mask) + 16 * k, 16);
            sum += one;
            weighted += (double)weight[k] * one;
        }
        CHECK_NEAR(xg_item(xg_guide(map, mask, &o)), sum, TOL(1e-5, 1e-13));
        o.mean = true;
        CHECK_NEAR(xg_item(xg_guide(map, mask, &o)), sum / 4, TOL(1e-5, 1e-13));
        o.weight = weight;
        CHECK_NEAR(xg_item(xg_guide(map, mask, &o)), weighted / 3, TOL(1e-5, 1e-13));
        o.mean = false;
        CHECK_NEAR(xg_item(xg_guide(map, mask, &o)), weighted, TOL(1e-5, 1e-13));
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

/* Weight 0 means: whatever the map holds, it adds exactly nothing and gets exactly no gradient. */
static void test_weight_zero_silences_anything(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real hostile[4] = { 0, (xg_real)NAN, (xg_real)INFINITY, -1 };
    const xg_real weight[2] = { 0, 1 };
    for (int i = 0; i < 32; i++) {
        xg_real map[8] = { 0, 0, 0, 0, (xg_real)0.5, (xg_real)0.25, 1, (xg_real)0.75 };
        const xg_real mask[8] = { 1, 0, 1, 0, 1, 1, 0, 0 };
        for (int k = 0; k < 4; k++) map[k] = hostile[i % 4];
        xg_guide_options o = options(every_loss[i / 4 % 4]);
        o.raw = i >= 16;
        o.weight = weight;
        xg_tensor *a = plane(t, 2, 2, 2, map);
        xg_tensor *loss = xg_guide(a, plane(t, 2, 2, 2, mask), &o);
        const xg_real *g = xg_data(xg_grad(loss, a));
        o.weight = NULL;
        CHECK(xg_item(loss) == loss_of(t, o, map + 4, mask + 4, 4));
        for (int k = 0; k < 4; k++) CHECK(g[k] == 0);
        for (int k = 4; k < 8; k++) CHECK(isfinite((double)g[k]));
        CHECK_OK(t);
        xg_tape_reset(t);
    }
    xg_tape_free(t);
}

static void test_nobody_counts(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real weight[2] = { 0, 0 }, map[4] = { 1, 2, 0, 0 }, mask[4] = { 1, 0, 0, 0 };
    for (int i = 0; i < 8; i++) {
        xg_guide_options o = options(every_loss[i % 4]);
        o.weight = weight;
        o.mean = i >= 4;
        xg_tensor *a = plane(t, 2, 1, 2, map);
        xg_tensor *loss = xg_guide(a, plane(t, 2, 1, 2, mask), &o);
        CHECK(xg_item(loss) == 0);
        const xg_real *g = xg_data(xg_grad(loss, a));
        for (int k = 0; k < 4; k++) CHECK(g[k] == 0);
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

/* One of the inputs that break careless code, chosen by `kind`. */
static void degenerate_map(xg_real *map, int count, int kind, xg_rng *rng)
{
    const double scale[8] = { 0, 1, -1, 1, 1, 1e-20, 1e15, 1 };
    for (int i = 0; i < count; i++) {
        double value = xg_rng_normal(rng);
        if (kind == 1 || kind == 2) value = 1;           /* flat                                  */
        if (kind == 3) value = i == 0;                   /* one pixel                             */
        if (kind == 7) value = value < 0 ? -1 : 1;       /* ties everywhere                       */
        map[i] = (xg_real)(scale[kind] * value);
    }
}

static void degenerate_mask(xg_real *mask, int count, int kind, xg_rng *rng)
{
    for (int i = 0; i < count; i++) {
        int value = xg_rng_below(rng, 2);
        if (kind == 0) value = 0;
        if (kind == 1) value = 1;
        if (kind == 2) value = i == count - 1;
        mask[i] = (xg_real)value;
    }
}

/* Whatever meets whatever: loss and gradient are finite, and silent samples stay silent. */
static void test_degenerate_inputs(void)
{
    enum { N = 3, AREA = 6 };
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(7);
    for (int round = 0; round < 1500; round++) {
        xg_real map[N * AREA], mask[N * AREA], big[N * AREA * 4], weight[N];
        for (int i = 0; i < N; i++) {
            degenerate_map(map + i * AREA, AREA, xg_rng_below(&rng, 8), &rng);
            int kind = xg_rng_below(&rng, 4);
            degenerate_mask(mask + i * AREA, AREA, kind, &rng);
            degenerate_mask(big + i * AREA * 4, AREA * 4, kind, &rng);
            weight[i] = (xg_real)xg_rng_below(&rng, 3);
        }
        xg_guide_options o = options(every_loss[round % 4]);
        o.mean = xg_rng_below(&rng, 2) == 1;
        o.weight = xg_rng_below(&rng, 2) ? weight : NULL;
        bool larger = xg_rng_below(&rng, 2) == 1;
        xg_tensor *a = plane(t, N, 2, 3, map);
        xg_tensor *m = larger ? plane(t, N, 4, 6, big) : plane(t, N, 2, 3, mask);
        xg_tensor *loss = xg_guide(a, m, &o);
        const xg_real *g = xg_data(xg_grad(loss, a));
        CHECK(isfinite(xg_item(loss)));
        CHECK(xg_item(loss) >= TOL(-1e-6, -1e-14));
        for (int i = 0; i < N * AREA && !xg_failed(t); i++) {
            CHECK(isfinite((double)g[i]));
            if (o.weight && weight[i / AREA] <= 0) CHECK(g[i] == 0);
        }
        CHECK_OK(t);
        xg_tape_reset(t);
    }
    xg_tape_free(t);
}

/* A sample that counts and is NaN must not be hushed up: the optimiser refuses such a loss. */
static void test_nan_maps_stay_visible(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real map[4] = { 1, (xg_real)NAN, 2, 3 }, mask[4] = { 1, 1, 0, 0 };
    for (int i = 0; i < 8; i++) {
        xg_guide_options o = i < 4 ? options(every_loss[i]) : raw(every_loss[i - 4]);
        CHECK(isnan(loss_of(t, o, map, mask, 4)));
    }
    xg_tape_free(t);
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void refused(xg_tape *t, xg_tensor *map, xg_tensor *mask, const xg_guide_options *o,
                    xg_code code)
{
    CHECK(isnan(xg_item(xg_guide(map, mask, o))));
    CHECK_ERROR(xg_tape_error(t), code);
    xg_clear_error(t);
}

static void test_errors(void)
{
    xg_tape *t = xg_tape_new(NULL), *other = xg_tape_new(NULL);
    const xg_real nan_mask[4] = { 0, (xg_real)NAN, 0, 1 }, two[4] = { 0, 2, 0, 1 };
    const xg_real below[4] = { 0, -1, 0, 1 };
    xg_tensor *map = plane(t, 1, 2, 2, NULL), *mask = plane(t, 1, 2, 2, NULL);
    xg_guide_options o = options(XG_LOSS_ENERGY), r = raw(XG_LOSS_L1), bad = o;
    refused(t, map, plane(t, 2, 2, 2, NULL), &o, XG_ERR_SHAPE);
    refused(t, xg_leaf(t, xg_shape4(1, 3, 2, 2), NULL), mask, &o, XG_ERR_SHAPE);
    refused(t, map, xg_leaf(t, xg_shape4(1, 3, 2, 2), NULL), &o, XG_ERR_SHAPE);
    refused(t, map, plane(t, 1, 4, 4, NULL), &r, XG_ERR_SHAPE);
    refused(t, plane(t, 1, 4, 4, NULL), mask, &o, XG_ERR_SHAPE);
    refused(t, map, plane(other, 1, 2, 2, NULL), &o, XG_ERR_TAPE);
    refused(t, map, plane(t, 1, 2, 2, nan_mask), &o, XG_ERR_NONFINITE);
    refused(t, map, plane(t, 1, 2, 2, two), &o, XG_ERR_ARGUMENT);
    refused(t, map, plane(t, 1, 2, 2, below), &o, XG_ERR_ARGUMENT);
    int unknown = 99;
    bad.loss = (xg_loss)unknown;
    refused(t, map, mask, &bad, XG_ERR_ARGUMENT);
    const xg_real hostile[4] = { -1, (xg_real)NAN, (xg_real)INFINITY, (xg_real)-INFINITY };
    for (int i = 0; i < 4; i++) {
        bad = o;
        bad.weight = hostile + i;
        refused(t, map, mask, &bad, i == 0 ? XG_ERR_ARGUMENT : XG_ERR_NONFINITE);
    }
    CHECK(xg_item(xg_guide(map, mask, NULL)) == 1.0);    /* no options: Energy                    */
    CHECK_OK(t);
    xg_tape_free(other);
    xg_tape_free(t);
}

/* ---- boxes ----------------------------------------------------------------------------------- */

static xg_box box_of(double x0, double y0, double x1, double y1)
{
    xg_box box = { x0, y0, x1, y1 };
    return box;
}

/* Is exactly the rectangle [x0,x1) x [y0,y1) set? */
static bool is_rectangle(const xg_real *mask, int h, int w, int x0, int y0, int x1, int y1)
{
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++) {
            bool inside = x >= x0 && x < x1 && y >= y0 && y < y1;
            if (mask[y * w + x] != (inside ? 1 : 0)) return false;
        }
    }
    return true;
}

enum { H = 224, W = 224 };
static xg_real drawn[H * W];

static const xg_real *draw(xg_box box, double width, double height, double dilation)
{
    memset(drawn, 0, sizeof drawn);
    xg_mask_box(drawn, H, W, box, width, height, dilation);
    return drawn;
}

static void test_boxes_by_hand(void)
{
    CHECK(is_rectangle(draw(box_of(10, 20, 30, 50), 224, 224, 0), H, W, 10, 20, 30, 50));
    CHECK(is_rectangle(draw(box_of(150, 75, 300, 300), 448, 448, 0), H, W, 75, 37, 150, 150));
    CHECK(is_rectangle(draw(box_of(150, 0, 299, 100), 300, 300, 0), H, W, 112, 0, 223, 74));
    CHECK(is_rectangle(draw(box_of(180, 340, 360, 480), 640, 640, 0), H, W, 63, 119, 126, 168));
    CHECK(is_rectangle(draw(box_of(0, 0, 500, 375), 500, 375, 0), H, W, 0, 0, 223, 223));
    CHECK(is_rectangle(draw(box_of(-40, -1, 900, 900), 500, 375, 0), H, W, 0, 0, 223, 223));
    CHECK(is_rectangle(draw(box_of(10.9, 20.9, 30.9, 50.9), 224, 224, 0), H, W, 10, 20, 30, 50));
    CHECK(is_rectangle(draw(box_of(10, 10, 10.9, 50), 224, 224, 0), H, W, 0, 0, 0, 0));
}

/* Dilated by int(p * side) on each side, clipped to the last row and column, which stay free. */
static void test_dilation_by_hand(void)
{
    CHECK(is_rectangle(draw(box_of(100, 100, 120, 140), 224, 224, 0.5), H, W, 90, 80, 130, 160));
    CHECK(is_rectangle(draw(box_of(100, 100, 119, 139), 224, 224, 0.25), H, W, 96, 91, 123, 148));
    CHECK(is_rectangle(draw(box_of(5, 200, 25, 220), 224, 224, 0.5), H, W, 0, 190, 35, 223));
    CHECK(is_rectangle(draw(box_of(10, 10, 10.9, 50), 224, 224, 0.5), H, W, 0, 0, 0, 0));
    CHECK(is_rectangle(draw(box_of(10, 10, 12, 50), 224, 224, 1e9), H, W, 0, 0, 223, 223));
    CHECK(is_rectangle(draw(box_of(10, 20, 30, 50), 224, 224, -0.5), H, W, 10, 20, 30, 50));
    CHECK(is_rectangle(draw(box_of(10, 20, 30, 50), 224, 224, (double)NAN), H, W, 10, 20, 30, 50));
}

static void test_boxes_unite(void)
{
    xg_real mask[16];
    int sum = 0;
    memset(mask, 0, sizeof mask);
    xg_mask_box(mask, 4, 4, box_of(0, 0, 2, 2), 4, 4, 0);
    xg_mask_box(mask, 4, 4, box_of(1, 1, 3, 3), 4, 4, 0);
    for (int i = 0; i < 16; i++) {
        sum += mask[i] == 1;
        CHECK(mask[i] == 0 || mask[i] == 1);
    }
    CHECK(sum == 7 && mask[0] == 1 && mask[5] == 1 && mask[10] == 1 && mask[15] == 0);
}

/* Nothing sensible to draw: nothing is drawn, and nothing is written out of bounds. */
static void test_hostile_boxes(void)
{
    const double nan = (double)NAN, inf = HUGE_VAL;
    const double value[3] = { nan, inf, -inf };
    for (int i = 0; i < 3; i++) {
        double v = value[i];
        CHECK(is_rectangle(draw(box_of(v, 0, 50, 50), 224, 224, 0), H, W, 0, 0, 0, 0));
        CHECK(is_rectangle(draw(box_of(0, v, 50, 50), 224, 224, 0), H, W, 0, 0, 0, 0));
        CHECK(is_rectangle(draw(box_of(0, 0, v, 50), 224, 224, 0), H, W, 0, 0, 0, 0));
        CHECK(is_rectangle(draw(box_of(0, 0, 50, v), 224, 224, 0.5), H, W, 0, 0, 0, 0));
        CHECK(is_rectangle(draw(box_of(0, 0, 50, 50), v, 224, 0), H, W, 0, 0, 0, 0));
        CHECK(is_rectangle(draw(box_of(0, 0, 50, 50), 224, v, 0), H, W, 0, 0, 0, 0));
    }
    xg_box huge = box_of(-1e300, -1e300, 1e300, 1e300);
    CHECK(is_rectangle(draw(huge, 224, 224, 0), H, W, 0, 0, 223, 223));
    CHECK(is_rectangle(draw(box_of(0, 0, 50, 50), 0, 224, 0), H, W, 0, 0, 0, 0));
    CHECK(is_rectangle(draw(box_of(0, 0, 50, 50), 224, -1, 0), H, W, 0, 0, 0, 0));
    CHECK(is_rectangle(draw(box_of(50, 50, 20, 20), 224, 224, 0.5), H, W, 0, 0, 0, 0));
    CHECK(is_rectangle(draw(box_of(50, 50, 20, 20), 224, 224, 1e300), H, W, 0, 0, 0, 0));
    CHECK(is_rectangle(draw(box_of(20, 20, 50, 50), 224, 224, inf), H, W, 0, 0, 223, 223));
    CHECK(is_rectangle(draw(box_of(900, 900, 950, 950), 500, 500, 0.5), H, W, 0, 0, 0, 0));
    memset(drawn, 0, sizeof drawn);
    xg_mask_box(NULL, H, W, box_of(0, 0, 9, 9), 9, 9, 0);
    xg_mask_box(drawn, 0, W, box_of(0, 0, 9, 9), 9, 9, 0);
    xg_mask_box(drawn, H, -3, box_of(0, 0, 9, 9), 9, 9, 0);
    xg_mask_box(drawn, 1, 1, box_of(0, 0, 9, 9), 9, 9, 0);
    CHECK(is_rectangle(drawn, H, W, 0, 0, 0, 0));
}

static int clipped(double edge, double scale, int size)
{
    double scaled = edge * scale;
    return (int)(scaled < 0 ? 0 : scaled > size - 1 ? size - 1 : scaled);
}

/* Random boxes against the rule written down literally. Extents that divide the mask's by a power
 * of two keep both ways of scaling exact. */
static void test_random_boxes(void)
{
    const int h = 32, w = 64;
    xg_rng rng = xg_rng_seed(8);
    for (int round = 0; round < 500; round++) {
        xg_real mask[32 * 64];
        double width = 32 << xg_rng_below(&rng, 4), height = 16 << xg_rng_below(&rng, 4);
        xg_box box;
        box.x0 = width * (xg_rng_uniform(&rng) - 0.2);
        box.y0 = height * (xg_rng_uniform(&rng) - 0.2);
        box.x1 = width * (xg_rng_uniform(&rng) + 0.2);
        box.y1 = height * (xg_rng_uniform(&rng) + 0.2);
        double p = 0.25 * xg_rng_below(&rng, 4);
        int x0 = clipped(box.x0, w / width, w), x1 = clipped(box.x1, w / width, w);
        int y0 = clipped(box.y0, h / height, h), y1 = clipped(box.y1, h / height, h);
        int dx = (int)(p * (x1 - x0)), dy = (int)(p * (y1 - y0));
        memset(mask, 0, sizeof mask);
        xg_mask_box(mask, h, w, box, width, height, p);
        if (x1 <= x0 || y1 <= y0) x0 = x1 = y0 = y1 = dx = dy = 0;
        x0 = x0 - dx < 0 ? 0 : x0 - dx;
        y0 = y0 - dy < 0 ? 0 : y0 - dy;
        x1 = x1 + dx > w - 1 ? w - 1 : x1 + dx;
        y1 = y1 + dy > h - 1 ? h - 1 : y1 + dy;
        CHECK(is_rectangle(mask, h, w, x0, y0, x1, y1));
    }
}

/* What a step on `x` is made of: the classes alone, or guidance of some samples too, together with
 * the others or apart from them. */
typedef enum manner { PLAIN, ALL, TOGETHER, APART } manner;
enum { BATCH = 8 };

static double masked_gradient(manner how, xg_tape *t, xg_params *p, xg_tensor **grad, int *count)
{
    static const int order[BATCH] = { 5, 1, 0, 2, 3, 4, 6, 7 };       /* the first two have masks */
    int label[BATCH];
    xg_real weight[BATCH];
    xg_rng rng = xg_rng_seed(21);
    xg_scope s = xg_scope_new(t, p, &rng, true);
    xg_tensor *x = xg_randn(t, xg_shape4(BATCH, 2, 8, 8), &rng), *map, *logits;
    xg_tensor *mask = xg_step(xg_randn(t, xg_shape4(BATCH, 1, 8, 8), &rng)), *leaf[16];
    for (int i = 0; i < BATCH; i++) {
        label[i] = order[i] % 3;                                       /* in that order */
        weight[i] = (xg_real)(how == ALL || i < 2);
    }
    xg_cnn_options cnn;
    memset(&cnn, 0, sizeof cnn);
    cnn.width = 4;
    cnn.layers = 2;
    cnn.classes = 3;
    xg_guide_options energy;
    memset(&energy, 0, sizeof energy);
    if (how == APART) {
        xg_tensor *xa = xg_take(x, order, 2), *with = xg_cnn(&s, xa, &cnn);
        logits = xg_concat(with, xg_cnn(&s, xg_take(x, order + 2, BATCH - 2), &cnn), 0);
        map = xg_input_x_gradient(xg_pick(with, label), xa);
        mask = xg_take(mask, order, 2);
    } else {
        xg_tensor *all = xg_take(x, order, BATCH);
        logits = xg_cnn(&s, all, &cnn);
        map = how == PLAIN ? NULL : xg_input_x_gradient(xg_pick(logits, label), all);
        mask = xg_take(mask, order, BATCH);
        energy.weight = weight;
    }
    xg_tensor *loss = xg_cross_entropy(logits, label, NULL);
    if (map) loss = xg_add(loss, xg_guide(map, mask, &energy));
    *count = xg_params_leaves(p, t, leaf, 16);
    xg_grads(loss, NULL, leaf, *count, NULL, grad);
    return xg_tape_stats(t).flops;
}

/* Guiding a quarter of the samples apart costs a quarter of what guidance adds. */
static void test_only_samples_with_masks_are_guided(void)
{
    double flops[4];
    xg_tensor *grad[4][16];
    xg_tape *t[4];
    xg_params *p[4];
    int count = 0;
    double other = 0;
    for (int how = PLAIN; how <= APART; how++) {
        t[how] = xg_tape_new(NULL);
        p[how] = xg_params_new(NULL);
        flops[how] = masked_gradient((manner)how, t[how], p[how], grad[how], &count);
        CHECK_OK(t[how]);
    }
    CHECK(flops[TOGETHER] == flops[ALL] && flops[PLAIN] < flops[ALL]);
    CHECK_NEAR(flops[APART] / flops[PLAIN], 0.75 + 0.25 * flops[ALL] / flops[PLAIN], 1e-12);
    for (int i = 0; i < count; i++) {
        double worst = 0, largest = 0;
        for (size_t j = 0; j < xg_size(grad[APART][i]); j++) {
            double a = (double)xg_data(grad[APART][i])[j], b = (double)xg_data(grad[TOGETHER][i])[j];
            if (!(fabs(a - b) <= worst)) worst = fabs(a - b);
            largest = fmax(largest, fabs(b));
            other = fmax(other, fabs(b - (double)xg_data(grad[ALL][i])[j]));
        }
        CHECK(worst <= TOL(2e-5, 1e-12) * largest);
    }
    CHECK(other > 1e-3);                       /* those that are not guided would have mattered */
    for (int how = PLAIN; how <= APART; how++) xg_tape_free(t[how]);
    for (int how = PLAIN; how <= APART; how++) xg_params_free(p[how]);
}

static void test_samples_are_taken(void)
{
    static const xg_real in[] = { 1, 2, 3, 4, 5, 6 };
    static const int order[] = { 2, 0, 2, 1 }, bad[] = { 0, 3 };
    static const xg_real out[] = { 5, 6, 1, 2, 5, 6, 3, 4 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(3, 2, 1, 1), in), *y = xg_take(x, order, 4), *g = xg_grad(y, x);
    CHECK(xg_shape_same(xg_shape_of(y), xg_shape4(4, 2, 1, 1)));
    for (int i = 0; i < 8; i++) CHECK_NEAR(xg_data(y)[i], out[i], 0);
    for (int i = 0; i < 6; i++) CHECK_NEAR(xg_data(g)[i], i < 4 ? 1 : 2, 0);
    CHECK_OK(t);
    xg_take(x, bad, 2);
    CHECK(xg_tape_error(t)->code == XG_ERR_ARGUMENT);
    xg_tape_free(t);
}

TEST_MAIN(
    TEST(test_energy_values)
    TEST(test_energy_gradient)
    TEST(test_energy_of_faint_maps)
    TEST(test_l1_values)
    TEST(test_l1_gradient)
    TEST(test_ppce_values)
    TEST(test_ppce_gradient)
    TEST(test_ppce_skips_empty_masks)
    TEST(test_rrr_values_and_gradient)
    TEST(test_third_order)
    TEST(test_third_order_raw)
    TEST(test_post_defaults)
    TEST(test_weights)
    TEST(test_weight_zero_silences_anything)
    TEST(test_nobody_counts)
    TEST(test_degenerate_inputs)
    TEST(test_nan_maps_stay_visible)
    TEST(test_errors)
    TEST(test_boxes_by_hand)
    TEST(test_dilation_by_hand)
    TEST(test_boxes_unite)
    TEST(test_hostile_boxes)
    TEST(test_random_boxes)
    TEST(test_only_samples_with_masks_are_guided)
    TEST(test_samples_are_taken)
)
