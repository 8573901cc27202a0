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
        xg_tensor *grad[2] = { xg_randn(t, xg_shape_of(large), &rng), xg_randn(t, xg_shape_of(odd), &rng) };
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

/* The first gradient that is not finite is named, wherever in its blocks it lies. */
static void test_not_finite(void)
{
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
    xg_leaf_data(grad[1])[40000] = (xg_real)HUGE_VAL;
    xg_leaf_data(grad[2])[0] = (xg_real)NAN;
    CHECK(xg_optim_apply(NULL, params, leaf, grad, 3) == XG_ERR_NONFINITE);
    CHECK(strstr(xg_tape_error(t)->text, "'second'") != NULL);
    for (int i = 0; i < 3; i++) CHECK(xg_params_data(params, i)[40000] == 1);
    xg_params_free(params);
    xg_tape_free(t);
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

TEST_MAIN(
    TEST(test_optimisers)
    TEST(test_not_finite)
    TEST(test_old_weights)
)
