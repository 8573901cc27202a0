/* What lies between the products of a network: pools, selections, softmax, optimiser steps. The same
 * bits on every level and for any number of workers; what the fast paths make, by hand. */
#include "levels.h"

/* ---- optimisers -------------------------------------------------------------------------------- */

/* A matrix of several blocks and an odd little vector, after three steps. */
static xg_tensor *trained(xg_tape *t, int which)
{
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(11);
    xg_scope s = xg_scope_new(t, params, &rng, true);
    xg_tensor *large = xg_param(&s, "large", xg_shape4(1, 1, 5, 9001), XG_INIT_KAIMING, 1);
    xg_tensor *odd = xg_param(&s, "odd", xg_shape4(1, 1, 1, 13), XG_INIT_KAIMING, 1);
    xg_optim o;
    memset(&o, 0, sizeof o);
    o.kind = which / 2 < 3 ? XG_SGD : which / 2 == 3 ? XG_ADAM : XG_ADAMW;
    o.momentum = which / 2 == 0 ? 0 : 0.9;
    o.nesterov = which / 2 == 2;
    o.lr = 0.05;
    o.weight_decay = 0.1;
    o.clip_norm = which % 2 ? 3 : 0;
    xg_tensor *leaf[2] = { large, odd };
    for (int step = 0; step < 3; step++) {
        xg_tensor *grad[2] = { randn(t, xg_shape_of(large), &rng), randn(t, xg_shape_of(odd), &rng) };
        xg_optim_apply(&o, params, leaf, grad, 2);
    }
    xg_tensor *copy = xg_leaf(t, xg_shape4(1, 1, 1, 5 * 9001), xg_params_data(params, 0));
    copy = xg_concat(copy, xg_leaf(t, xg_shape_of(odd), xg_params_data(params, 1)), 3);
    xg_params_free(params);
    return copy;
}

static void test_optimisers(void)
{
    for (int which = 0; which < 10; which++) check_levels("optimiser", trained, which);
}

static void refuses_not_finite(int place, double clip_norm)
{
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    sgd.clip_norm = clip_norm;
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(12);
    xg_scope s = xg_scope_new(t, params, &rng, true);
    xg_shape shape = xg_shape4(1, 1, 1, 40001);
    xg_tensor *leaf[3], *grad[3];
    const char *name[3] = { "first", "second", "third" };
    for (int i = 0; i < 3; i++) {
        leaf[i] = xg_param(&s, name[i], shape, XG_INIT_ONE, 1);
        grad[i] = xg_full(t, shape, 1);
    }
    xg_leaf_data(grad[1])[place] = (xg_real)HUGE_VAL;
    xg_leaf_data(grad[2])[0] = (xg_real)NAN;
    CHECK(xg_optim_apply(&sgd, params, leaf, grad, 3) == XG_ERR_NONFINITE);
    CHECK(strstr(xg_tape_error(t)->text, "'second'") != NULL);
    for (int i = 0; i < 3; i++) CHECK(xg_params_data(params, i)[40000] == 1);
    xg_params_free(params);
    xg_tape_free(t);
}

/* The first gradient that is not finite is named, wherever in its blocks it lies. */
static void test_not_finite(void)
{
    const int place[4] = { 0, 16383, 39993, 40000 };
    for (int i = 0; i < 8; i++) refuses_not_finite(place[i / 2], i % 2);
}

/* What waits for a weight, by way of two reshapings of it, reads what it was. */
static void test_old_weights(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(13);
    xg_scope s = xg_scope_new(t, params, &rng, true);
    xg_tensor *w = xg_param(&s, "w", xg_shape4(1, 1, 4, 6), XG_INIT_ONE, 1);
    xg_tensor *turned = xg_reshape(xg_reshape(w, xg_shape4(1, 24, 1, 1)), xg_shape4(1, 1, 1, 24));
    xg_tensor *waits = xg_affine(turned, 3, 0);
    CHECK(xg_optim_step(NULL, params, xg_sum(w)) == XG_ERR_OK);
    CHECK(xg_item(waits) == 3);
    CHECK(xg_item(turned) == 1);
    CHECK_NEAR(xg_params_data(params, 0)[0], 0.99, 1e-6);
    xg_params_free(params);
    xg_tape_free(t);
}

/* ---- pools ------------------------------------------------------------------------------------- */

typedef struct pool_case { int h, w, kh, kw, stride, pad, dilation; } pool_case;

static const pool_case pools[] = {
    { 64,64, 2,2,2,0,1 }, { 7,9, 2,2,2,0,1 }, { 3,2, 2,2,2,0,1 }, { 13,35, 3,3,2,1,1 }, { 56,34, 3,3,2,1,1 },
    { 5,5, 3,3,2,1,1 }, { 9,40, 3,3,1,1,1 }, { 20,21, 3,2,2,1,2 }, { 9,9, 1,1,2,0,1 }, { 11,37, 2,3,3,1,1 },
    { 6,6, 6,6,1,3,1 }, { 1,33, 1,3,2,0,1 }, { 12,50, 4,5,2,2,2 }, { 8,8, 2,2,2,1,1 }
};
enum { POOLS = (int)(sizeof pools / sizeof *pools) };

static xg_window window_of(const pool_case *k)
{
    xg_window w = { k->kh, k->kw, k->stride, k->pad, k->dilation, 1 };
    return w;
}

/* Many equal numbers, zeros of both signs, NaN and infinities. */
static xg_tensor *ties(xg_tape *t, uint64_t seed, xg_shape s)
{
    xg_tensor *x = numbers(t, seed, s.n, s.c, s.h, s.w);
    xg_real *v = xg_leaf_data(x);
    xg_rng rng = xg_rng_seed(seed + 1);
    for (size_t i = 0; i < xg_size(x); i++) {
        if (xg_rng_below(&rng, 2)) v[i] = (xg_real)(xg_rng_below(&rng, 3) - 1);
    }
    return x;
}

/* The index by the book: row by row, the first maximum wins, the last NaN wins. */
static xg_real argpool_of(const xg_real *x, const pool_case *k, int oy, int ox)
{
    int best = -1;
    for (int dy = 0; dy < k->kh; dy++) {
        for (int dx = 0; dx < k->kw; dx++) {
            int r = oy * k->stride - k->pad + dy * k->dilation;
            int c = ox * k->stride - k->pad + dx * k->dilation, at = r * k->w + c;
            if (r < 0 || c < 0 || r >= k->h || c >= k->w) continue;
            if (best < 0 || x[at] > x[best] || x[at] != x[at]) best = at;
        }
    }
    return (xg_real)best;
}

static void test_argpool(void)
{
    for (int i = 0; i < POOLS; i++) {
        xg_tape *t = xg_tape_new(NULL);
        const pool_case *k = &pools[i];
        xg_tensor *x = ties(t, 20, xg_shape4(2, 3, k->h, k->w)), *at = xg_argpool(x, window_of(k));
        xg_shape s = xg_shape_of(at);
        const xg_real *v = xg_data(at);
        int bad = 0;
        CHECK_OK(t);
        for (int plane = 0; plane < 6; plane++) {
            const xg_real *from = xg_data(x) + plane * k->h * k->w;
            for (int p = 0; p < s.h * s.w; p++) bad += *v++ != argpool_of(from, k, p / s.w, p % s.w);
        }
        if (bad) printf("  %d wrong in pool %d\n", bad, i);
        CHECK(bad == 0);
        xg_tape_free(t);
    }
}

/* Windows of 2x2 side by side, of planes of many widths: places, what lies there, and what goes there. */
static void test_pairs(void)
{
    pool_case k = { 2, 2, 2, 2, 2, 0, 1 };
    for (k.w = 2; k.w < 70; k.w++, k.h = 2 + k.w % 4) {
        xg_tape *t = xg_tape_new(NULL);
        xg_shape s = xg_shape4(1, 2, k.h, k.w);
        xg_tensor *x = ties(t, 37, s), *other = numbers(t, 38, 1, 2, k.h, k.w);
        xg_tensor *at = xg_argpool(x, window_of(&k)), *there = xg_gather(other, at);
        const xg_real *index = xg_data(at), *picked = xg_data(there);
        const xg_real *y = xg_data(xg_maxpool(x, window_of(&k)));
        const xg_real *placed = xg_data(xg_scatter(there, at, s));
        int count = (k.h / 2) * (k.w / 2), plane = k.h * k.w, bad = 0, zeros = 0;
        CHECK_OK(t);
        for (int i = 0; i < 2 * count; i++) {
            int from = i / count * plane, here = from + (int)index[i];
            int row = i % count / (k.w / 2), column = i % count % (k.w / 2);
            bad += index[i] != argpool_of(xg_data(x) + from, &k, row, column);
            bad += !same_number(y[i], xg_data(x)[here]) || !same_number(picked[i], xg_data(other)[here]);
            bad += !same_number(placed[here], picked[i] + 0);           /* -0 comes as 0 */
        }
        for (int i = 0; i < 2 * plane; i++) zeros += placed[i] == 0;
        CHECK(bad == 0);
        CHECK(zeros >= 2 * (plane - count));
        xg_tape_free(t);
    }
}

/* argpool; another tensor at its places, and the transpose of that; means, and their transpose. */
static xg_tensor *pool_at(xg_tape *t, int which)
{
    const pool_case *k = &pools[which / 6];
    xg_tensor *x = ties(t, 21, xg_shape4(2, 3, k->h, k->w)), *at = xg_argpool(x, window_of(k));
    xg_tensor *other = ties(t, 22, xg_shape_of(x)), *g = ties(t, 23, xg_shape_of(at));
    switch (which % 6) {
    case 0: return at;
    case 1: return xg_gather(other, at);
    case 2: return xg_scatter(g, at, xg_shape_of(x));
    case 3: return xg_avgpool(x, window_of(k));
    case 4: return xg_avgpool_t(g, window_of(k), xg_shape_of(x));
    default: return xg_maxpool(x, window_of(k));
    }
}

static void test_pools(void)
{
    for (int which = 0; which < 6 * POOLS; which++) check_levels("pool", pool_at, which);
}

/* A mean in double of what lies inside, over all of the window. */
static double avgpool_of(const xg_real *x, const pool_case *k, int oy, int ox)
{
    double sum = 0;
    for (int i = 0; i < k->kh * k->kw; i++) {
        int r = oy * k->stride - k->pad + i / k->kw * k->dilation;
        int c = ox * k->stride - k->pad + i % k->kw * k->dilation;
        if (r >= 0 && c >= 0 && r < k->h && c < k->w) sum += (double)x[r * k->w + c];
    }
    return sum / (k->kh * k->kw);
}

/* Means are right, and so is the transpose: <avgpool(x), g> = <x, avgpool_t(g)>. */
static void test_avgpool(void)
{
    for (int i = 0; i < POOLS; i++) {
        xg_tape *t = xg_tape_new(NULL);
        xg_rng rng = xg_rng_seed(26);
        const pool_case *k = &pools[i];
        xg_tensor *x = randn(t, xg_shape4(2, 3, k->h, k->w), &rng), *y = xg_avgpool(x, window_of(k));
        xg_shape s = xg_shape_of(y);
        double worst = 0;
        for (int p = 0; p < 6 * s.h * s.w; p++) {
            const xg_real *from = xg_data(x) + p / (s.h * s.w) * k->h * k->w;
            double mean = avgpool_of(from, k, p / s.w % s.h, p % s.w);
            worst = fmax(worst, fabs((double)xg_data(y)[p] - mean));
        }
        CHECK(worst < TOL(1e-6, 1e-14));
        xg_tensor *g = randn(t, s, &rng), *back = xg_avgpool_t(g, window_of(k), xg_shape_of(x));
        CHECK_NEAR(xg_item(xg_dot(y, g)), xg_item(xg_dot(x, back)), TOL(1e-5, 1e-12));
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* gather and scatter know what made the index: with the same numbers as data they must do the same. One
 * index plane may serve all channels. */
static void test_known_index(void)
{
    for (int i = 0; i < POOLS; i++) {
        xg_tape *t = xg_tape_new(NULL);
        const pool_case *k = &pools[i];
        int n = i % 2 + 1, c = i % 3 ? 3 : 1;
        xg_shape whole = xg_shape4(2, 3, k->h, k->w);
        xg_tensor *x = ties(t, 24, whole);
        xg_tensor *at = xg_argpool(ties(t, 25, xg_shape4(n, c, k->h, k->w)), window_of(k));
        xg_tensor *data = xg_leaf(t, xg_shape_of(at), xg_data(at));
        xg_tensor *known[2] = { xg_gather(x, at), NULL }, *plain[2] = { xg_gather(x, data), NULL };
        known[1] = xg_scatter(known[0], at, whole);
        plain[1] = xg_scatter(plain[0], data, whole);
        CHECK_OK(t);
        for (int j = 0; j < 2; j++) {
            const xg_real *u = xg_data(known[j]), *v = xg_data(plain[j]);
            size_t bad = 0, size = xg_size(known[j]);
            for (size_t p = 0; p < size; p++) bad += !same_number(u[p], v[p]);
            CHECK(bad == 0);
        }
        xg_tape_free(t);
    }
}

/* ReLU of something cheap: nothing; a number a channel; a plane a sample, or a row. */
static xg_tensor *cheap_relu(xg_tensor *x, xg_tensor *bias)
{
    return xg_relu(xg_affine(bias ? xg_add(x, bias) : x, 0.5, 0));
}

static size_t differ(xg_tensor *a, xg_tensor *b)
{
    const xg_real *u = xg_data(a), *v = xg_data(b);
    size_t bad = 0, size = xg_size(a);
    for (size_t i = 0; i < size; i++) bad += !same_number(u[i], v[i]);
    return bad;
}

/* A pool that makes its planes on the way, and gates its gradient in front of the planes, does what it
 * does on planes in memory, at places that are data. */
static void test_planes_on_the_way(void)
{
    for (int which = 0; which < 4 * POOLS; which++) {
        xg_tape *t = xg_tape_new(NULL);
        const pool_case *k = &pools[which / 4];
        xg_shape bias[4] = { { 1, 1, 1, 1 }, { 1, 3, 1, 1 }, { 2, 1, k->h, k->w }, { 1, 1, 1, k->w } };
        xg_tensor *x = ties(t, 27, xg_shape4(2, 3, k->h, k->w)), *b = NULL;
        if (which % 4) b = ties(t, 28, bias[which % 4]);
        xg_tensor *way = cheap_relu(x, b), *memory = cheap_relu(x, b);
        size_t before = xg_tape_stats(t).bytes;
        xg_tensor *fast = xg_maxpool(way, window_of(k));
        xg_tensor *at = xg_argpool(way, window_of(k)), *g = ties(t, 29, xg_shape_of(fast));
        CHECK(xg_data(fast) != NULL);
        size_t size = xg_size(x) * sizeof(xg_real), pooled = xg_size(fast) * sizeof(xg_real);
        if (which == 1) CHECK(xg_tape_stats(t).bytes - before < size + 3 * pooled);
        xg_data(memory);
        at = xg_leaf(t, xg_shape_of(at), xg_data(at));
        CHECK(differ(fast, xg_gather(memory, at)) == 0);
        xg_tensor *in[2] = { x, b }, *out[2], *seed = g;
        xg_grads(fast, seed, in, b ? 2 : 1, NULL, out);
        xg_tensor *back = xg_affine(xg_gate(xg_scatter(g, at, xg_shape_of(x)), memory), 0.5, 0);
        CHECK(differ(out[0], back) == 0);
        if (b) CHECK(differ(out[1], xg_sum_to(xg_affine(back, 1, 0), xg_shape_of(b))) == 0);
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* Weight gradients behind a pool: pictures, planes in and out, kernel, stride, padding. */
typedef struct pooled_case { int n, c, h, w, o, k, stride, pad; } pooled_case;

static const pooled_case pooled[] = {
    { 8,3,40,70,5,3,1,1 }, { 9,16,9,7,4,3,1,1 }, { 8,2,14,14,3,5,2,2 }, { 17,1,11,13,2,1,1,0 },
    { 10,33,6,6,3,2,1,0 }, { 8,9,50,6,2,3,1,2 }, { 7,3,12,10,5,3,1,1 }, { 8,65,4,4,113,3,1,1 }
};
enum { POOLED = (int)(sizeof pooled / sizeof *pooled) };

/* From what the pool sends back as it waits, once it is in memory, or from a copy of it. */
typedef enum pooled_way { WAITS, THERE, COPIED } pooled_way;

static xg_tensor *pooled_dw(xg_tape *t, const pooled_case *k, pooled_way way, size_t *taken)
{
    xg_rng rng = xg_rng_seed(32);
    xg_window window = { k->k, k->k, k->stride, k->pad, 1, 1 }, pairs = { 2, 2, 2, 0, 1, 1 };
    xg_tensor *x = randn(t, xg_shape4(k->n, k->c, k->h, k->w), &rng);
    xg_tensor *w = randn(t, xg_shape4(k->o, k->c, k->k, k->k), &rng);
    xg_tensor *z = xg_conv2d(x, w, window), *at = xg_argpool(z, pairs);
    xg_tensor *g = randn(t, xg_shape_of(at), &rng), *wide = xg_scatter(g, at, xg_shape_of(z));
    xg_data(at);
    if (way != WAITS) xg_data(wide);
    if (way == COPIED) wide = xg_leaf(t, xg_shape_of(z), xg_data(wide));
    size_t before = xg_tape_stats(t).bytes;
    xg_tensor *dw = xg_conv2d_dw(x, wide, window, xg_shape_of(w));
    if (taken) *taken = xg_tape_stats(t).bytes - before;
    return dw;
}

static xg_tensor *pooled_at(xg_tape *t, int which) { return pooled_dw(t, &pooled[which], WAITS, NULL); }

/* The same numbers, though no plane of g is made; but few pictures, or many sums, take the usual way. */
static void test_pooled_weights(void)
{
    for (int which = 0; which < POOLED; which++) {
        xg_tape *t = xg_tape_new(NULL);
        const pooled_case *k = &pooled[which];
        size_t few, most;
        xg_tensor *fast = pooled_dw(t, k, WAITS, &few), *plain = pooled_dw(t, k, COPIED, &most);
        xg_tensor *gap = xg_sub(fast, plain);
        double apart = xg_item(xg_dot(gap, gap)) / xg_item(xg_dot(plain, plain));
        CHECK(sqrt(apart) < TOL(2e-6, 1e-14));
        CHECK((few <= most) == (k->n >= 8 && which != 7));
        CHECK(differ(fast, pooled_dw(t, k, THERE, NULL)) == 0);
        CHECK_OK(t);
        xg_tape_free(t);
        check_levels("pooled", pooled_at, which);
    }
}

/* Input gradients behind a pool, from what it sends back as it waits, or from a copy of that. */
static xg_tensor *pooled_dx(xg_tape *t, int which, bool copied)
{
    static const int side[3][3] = { { 18, 22, 1 }, { 19, 23, 0 }, { 21, 18, 2 } };
    xg_rng rng = xg_rng_seed(36);
    xg_window window = { 3, 3, 1, side[which][2], 1, 1 }, pairs = { 2, 2, 2, 0, 1, 1 };
    xg_tensor *x = randn(t, xg_shape4(4, 32, side[which][0], side[which][1]), &rng);
    xg_tensor *w = randn(t, xg_shape4(32, 32, 3, 3), &rng);
    xg_tensor *z = xg_conv2d(x, w, window), *at = xg_argpool(z, pairs);
    xg_tensor *g = randn(t, xg_shape_of(at), &rng), *wide = xg_scatter(g, at, xg_shape_of(z));
    xg_data(at);
    if (copied) wide = xg_leaf(t, xg_shape_of(z), xg_data(wide));
    return xg_conv2d_dx(w, wide, window, xg_shape_of(x));
}

static xg_tensor *pooled_dx_at(xg_tape *t, int which) { return pooled_dx(t, which, false); }

/* By Winograd's algorithm: the same bits, though no plane of g is made. */
static void test_pooled_inputs(void)
{
    for (int which = 0; which < 3; which++) {
        xg_tape *t = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
        CHECK(differ(pooled_dx(t, which, false), pooled_dx(t, which, true)) == 0);
        CHECK_OK(t);
        CHECK(xg_tape_stats(t).winograd >= 3);
        xg_tape_free(t);
        check_levels("pooled inputs", pooled_dx_at, which);
    }
}

static xg_tensor *pooled_loss(xg_tape *t, xg_params *params, xg_tensor **w)
{
    xg_rng rng = xg_rng_seed(37);
    xg_scope s = xg_scope_new(t, params, &rng, true);
    xg_window pairs = { 2, 2, 2, 0, 1, 1 };
    xg_conv_options same = { { 3, 3, 1, 1, 1, 1 }, false, XG_INIT_KAIMING, 1, false };
    xg_tensor *x = randn(t, xg_shape4(4, 8, 16, 16), &rng);
    x = xg_maxpool(xg_relu(xg_conv(&s, "a", x, 16, &same)), pairs);
    x = xg_maxpool(xg_relu(xg_conv(&s, "b", x, 16, &same)), pairs);
    CHECK(xg_params_leaves(params, t, w, 2) == 2);
    return xg_affine(xg_sum(xg_square(x)), 0.01, 0);
}

/* A step's last sweep ends what it has read: of four pictures, the weight gradient wants all of g, and
 * the input gradient must find that, too. So must one on a tape where a sweep has been before, whose
 * parts it takes over. A step of plain descent shows the gradient that it used. */
static void test_pooled_inputs_of_a_step(void)
{
    for (int again = 0; again < 2; again++) {
        xg_tape *t = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
        xg_tape *other = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
        xg_params *params = xg_params_new(NULL);
        xg_optim descent = { XG_SGD };
        xg_tensor *w[2], *v[2];
        xg_tensor *loss = pooled_loss(t, params, w), *same = again ? loss : pooled_loss(other, params, v);
        xg_tensor *from = again ? w[0] : v[0], *after = xg_sub(xg_affine(from, 1, 0), xg_grad(same, from));
        xg_data(after);
        descent.lr = 1;
        CHECK(xg_optim_step(&descent, params, loss) == XG_ERR_OK);
        for (int i = 0; i < 16 * 8 * 9; i++) {
            CHECK_NEAR(xg_params_data(params, 0)[i], xg_data(after)[i], TOL(1e-5, 1e-12));
        }
        CHECK_OK(t);
        xg_params_free(params);
        xg_tape_free(other);
        xg_tape_free(t);
    }
}

/* Whole numbers, so that sums are exact in any order; one in `share` is not 0. */
static xg_tensor *whole_numbers(xg_tape *t, uint64_t seed, xg_shape s, int share)
{
    xg_tensor *x = xg_leaf(t, s, NULL);
    xg_rng rng = xg_rng_seed(seed);
    for (size_t i = 0; i < xg_size(x); i++) {
        int value = xg_rng_below(&rng, 2) ? 1 + xg_rng_below(&rng, 3) : -1 - xg_rng_below(&rng, 3);
        xg_leaf_data(x)[i] = (xg_real)(xg_rng_below(&rng, share) ? 0 : value);
    }
    return x;
}

/* Windows without a gradient are left out: none, most, all of them. Nothing else is, not even NaN. */
static void test_zero_windows(void)
{
    static const int share[3] = { 1, 5, 1 << 30 };
    for (int which = 0; which < 4 * POOLED; which++) {
        xg_tape *t = level_tape(XG_WINOGRAD_NEVER, NULL, NULL);
        const pooled_case *k = &pooled[which / 4];
        xg_window window = { k->k, k->k, k->stride, k->pad, 1, 1 }, pairs = { 2, 2, 2, 0, 1, 1 };
        xg_tensor *x = whole_numbers(t, 34, xg_shape4(k->n, k->c, k->h, k->w), 1);
        xg_shape w = xg_shape4(k->o, k->c, k->k, k->k);
        xg_tensor *z = xg_conv2d(x, whole_numbers(t, 35, w, 1), window), *at = xg_argpool(z, pairs);
        xg_tensor *g = whole_numbers(t, 36, xg_shape_of(at), share[which % 4 % 3]);
        if (which % 4 == 3) xg_leaf_data(g)[xg_size(g) - 1] = (xg_real)NAN;
        xg_tensor *wide = xg_scatter(g, at, xg_shape_of(z));
        xg_tensor *fast = xg_conv2d_dw(x, wide, window, w);
        wide = xg_leaf(t, xg_shape_of(z), xg_data(wide));
        const xg_real *u = xg_data(fast), *v = xg_data(xg_conv2d_dw(x, wide, window, w));
        size_t bad = 0, nan = 0, size = xg_size(fast), plane = size / (size_t)k->o;
        CHECK_OK(t);
        for (size_t i = 0; i < size; i++) {
            bad += u[i] != v[i] && !(u[i] != u[i] && v[i] != v[i]);
            nan += u[i] != u[i];
        }
        CHECK(bad == 0);
        CHECK(nan == (which % 4 == 3 ? plane : 0));
        xg_tape_free(t);
    }
}

/* A large convolution below a pool of 2x2 is not kept: only maxima are; one of odd width is made a few
 * pictures at a time. */
static xg_tensor *sliced(xg_tape *t, bool waits)
{
    xg_rng rng = xg_rng_seed(33);
    xg_window window = { 3, 3, 1, 1, 1, 1 }, pairs = { 2, 2, 2, 0, 1, 1 };
    xg_tensor *x = randn(t, xg_shape4(5, 2, 163, 161), &rng);
    xg_tensor *w = randn(t, xg_shape4(9, 2, 3, 3), &rng), *b = randn(t, xg_shape4(1, 9, 1, 1), &rng);
    xg_tensor *z = xg_conv2d(x, w, window), *y = xg_relu(xg_add(z, b));
    if (!waits) xg_data(y);
    y = xg_maxpool(y, pairs);
    xg_data(y);
    xg_tensor *in[2] = { w, x }, *out[2];
    xg_grads(xg_dot(y, y), NULL, in, 2, NULL, out);
    return xg_concat(xg_reshape(y, xg_shape4(1, 1, 1, (int)xg_size(y))),
                     xg_reshape(out[1], xg_shape4(1, 1, 1, (int)xg_size(x))), 3);
}

static xg_tensor *sliced_at(xg_tape *t, int which) { return sliced(t, which == 0); }

static void test_slices(void)
{
    size_t peak[2];
    xg_tensor *y[2];
    xg_tape *t[2];
    for (int i = 0; i < 2; i++) {
        t[i] = xg_tape_new(NULL);
        y[i] = sliced(t[i], i == 0);
        peak[i] = xg_tape_stats(t[i]).peak;
        CHECK_OK(t[i]);
    }
    CHECK(differ(y[0], y[1]) == 0);
    CHECK(peak[0] < peak[1]);
    CHECK(xg_tape_stats(t[0]).flops == xg_tape_stats(t[1]).flops);
    for (int i = 0; i < 2; i++) xg_tape_free(t[i]);
    check_levels("sliced", sliced_at, 0);
}

/* ---- selection, softmax, copies ---------------------------------------------------------------- */

static xg_tensor *channels_at(xg_tape *t, int which)
{
    static const int shape[][4] = {
        { 256,10,1,1 }, { 3,40,1,1 }, { 2,2500,1,1 }, { 7,1,1,1 }, { 2,7,9,9 }, { 1,3,40,41 }, { 5,31,1,2 }
    };
    const int *s = shape[which / 4];
    xg_rng rng = xg_rng_seed(30);
    xg_tensor *x = xg_affine(randn(t, xg_shape4(s[0], s[1], s[2], s[3]), &rng), 5, 0);
    switch (which % 4) {
    case 0: return xg_softmax(x);
    case 1: return xg_log_softmax(x);
    case 2: return xg_argmax(x);
    default: return xg_max_to(x, xg_shape4(s[0], 1, s[2], s[3]));
    }
}

static void test_channels(void)
{
    for (int which = 0; which < 28; which++) check_levels("channels", channels_at, which);
}

/* Against the formulas in double. */
static void test_softmax(void)
{
    for (int which = 0; which < 28; which += 4) {
        xg_tape *t = xg_tape_new(NULL);
        xg_tensor *y = channels_at(t, which), *z = channels_at(t, which + 1);
        xg_rng rng = xg_rng_seed(30);
        xg_shape s = xg_shape_of(y);
        xg_tensor *x = xg_affine(randn(t, s, &rng), 5, 0);
        size_t plane = (size_t)(s.h * s.w), size = plane * (size_t)s.c;
        double worst = 0;
        for (size_t i = 0; i < (size_t)s.n * plane; i++) {
            size_t at = i / plane * size + i % plane;
            double sum = 0;
            for (size_t c = 0; c < size; c += plane) sum += exp((double)xg_data(x)[at + c]);
            for (size_t c = 0; c < size; c += plane) {
                double p = exp((double)xg_data(x)[at + c]) / sum;
                worst = fmax(worst, fabs((double)xg_data(y)[at + c] / p - 1));
                worst = fmax(worst, fabs((double)xg_data(z)[at + c] - log(p)));
            }
        }
        CHECK_OK(t);
        CHECK(worst < TOL(1e-5, 1e-12));
        xg_tape_free(t);
    }
}

/* A box cut out, padded back: its own numbers, and zeros around it. */
static void test_boxes(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(31);
    xg_shape s = xg_shape4(3, 4, 5, 6);
    xg_tensor *x = randn(t, s, &rng);
    const xg_real *v = xg_data(x);
    for (int which = 0; which < 16; which++) {
        int n0 = which & 1, c0 = which >> 1 & 1, h0 = which >> 2 & 1, w0 = which >> 3;
        xg_shape from = xg_shape4(n0, c0, h0, w0);
        xg_tensor *box = xg_slice(x, from, xg_shape4(s.n - n0, s.c - c0, s.h - h0, s.w - w0));
        const xg_real *y = xg_data(xg_pad(box, from, s));
        for (int i = 0; i < 3 * 4 * 5 * 6; i++) {
            bool inside = i / 120 >= n0 && i / 30 % 4 >= c0 && i / 6 % 5 >= h0 && i % 6 >= w0;
            CHECK(y[i] == (inside ? v[i] : 0));
        }
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

TEST_MAIN(
    TEST(test_channels)
    TEST(test_softmax)
    TEST(test_boxes)
    TEST(test_argpool)
    TEST(test_pairs)
    TEST(test_pools)
    TEST(test_avgpool)
    TEST(test_known_index)
    TEST(test_planes_on_the_way)
    TEST(test_pooled_weights)
    TEST(test_pooled_inputs)
    TEST(test_pooled_inputs_of_a_step)
    TEST(test_zero_windows)
    TEST(test_slices)
    TEST(test_optimisers)
    TEST(test_not_finite)
    TEST(test_old_weights)
)
