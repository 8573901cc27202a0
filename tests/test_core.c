/* Tape, memory, errors, readings: what must hold whatever the model. */
#include "levels.h"
#include "rising.h"
#include <limits.h>

/* ---- a guided training step on a small net, used by many tests ---------------------------------- */

typedef struct trainer {
    xg_tape   *tape;
    xg_params *params;
    xg_rng     rng;
} trainer;

static xg_tensor *small_net(xg_scope *s, xg_tensor *x)
{
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = 3;
    conv.window.pad = 1;
    x = xg_conv(s, "conv1", x, 5, &conv);
    x = xg_relu(xg_batch_norm(s, "bn1", x, NULL));
    xg_window pool = { 2, 2, 2, 0, 1, 1 };
    x = xg_maxpool(x, pool);
    conv.bias = true;
    x = xg_name(xg_relu(xg_conv(s, "conv2", x, 7, &conv)), "features");
    x = xg_dropout(s, x, 0.1);
    return xg_dense(s, "fc", xg_global_avgpool(x), 3, true);
}

/* One step with a guided map; returns the loss, NaN on failure. */
static double guided_step(trainer *a, int i)
{
    static const int label[4] = { 0, 2, 1, 1 };
    xg_mark mark = xg_tape_mark(a->tape);
    xg_scope s = xg_scope_new(a->tape, a->params, &a->rng, true);
    xg_rng data = xg_rng_seed(100 + (uint64_t)(i % 7));
    xg_tensor *x = xg_randn(a->tape, xg_shape4(4, 2, 6, 8), &data);
    xg_tensor *mask = xg_step(xg_randn(a->tape, xg_shape4(4, 1, 6, 8), &data));
    xg_tensor *logits = small_net(&s, x);
    xg_guide_options energy;
    memset(&energy, 0, sizeof energy);
    xg_tensor *map = xg_input_x_gradient(xg_pick(logits, label), x);
    xg_tensor *loss = xg_add(xg_cross_entropy(logits, label, NULL),
                             xg_affine(xg_guide(map, mask, &energy), 0.05, 0));
    xg_optim adam;
    memset(&adam, 0, sizeof adam);
    adam.kind = XG_ADAM;
    double value = xg_item(loss);
    if (xg_optim_step(&adam, a->params, loss) != XG_ERR_OK) value = (double)NAN;
    xg_tape_release(a->tape, mark);
    return value;
}

static trainer trainer_new(const xg_config *config)
{
    trainer a;
    a.tape = xg_tape_new(config);
    a.params = xg_params_new(config);
    a.rng = xg_rng_seed(1);
    return a;
}

static void trainer_free(trainer *a)
{
    xg_tape_free(a->tape);
    xg_params_free(a->params);
}

/* All weights, in a hash that any changed bit changes. */
static uint64_t fingerprint(xg_params *params)
{
    uint64_t h = 1469598103934665603u;
    for (int i = 0; i < xg_params_count(params); i++) {
        const unsigned char *bytes = (const unsigned char *)xg_params_data(params, i);
        size_t count = xg_shape_size(xg_params_shape(params, i)) * sizeof(xg_real);
        for (size_t j = 0; j < count; j++) h = (h ^ bytes[j]) * 1099511628211u;
    }
    return h;
}

/* ---- errors ------------------------------------------------------------------------------------ */

static xg_tensor *leaf(xg_tape *t, int n, int c, int h, int w)
{
    return xg_leaf(t, xg_shape4(n, c, h, w), NULL);
}

/* Provokes the error and copies it out. A new code without a case here fails the test. */
static xg_error provoke(xg_code code)
{
    xg_error error;
    xg_tape *t = xg_tape_new(NULL), *other = xg_tape_new(NULL);
    xg_params *p = xg_params_new(NULL);
    xg_tensor *x = leaf(t, 2, 3, 4, 4), *lo, *hi;
    xg_window bad = { 3, 3, -1, 0, 1, 1 };
    xg_config tiny;
    static double room[4096];
    static const unsigned char numpy_complex[] =
        "\x93NUMPY\x01\x00\x46\x00"
        "{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }            \n";
    memset(&error, 0, sizeof error);
    memset(&tiny, 0, sizeof tiny);
    switch (code) {
    case XG_ERR_MEMORY:
        xg_tape_free(t);
        tiny.fixed = room;
        tiny.fixed_bytes = sizeof room;
        t = xg_tape_new(&tiny);
        leaf(t, 100, 100, 1, 1);
        break;
    case XG_ERR_SHAPE: xg_add(xg_name(x, "left"), leaf(t, 2, 2, 4, 4)); break;
    case XG_ERR_ARGUMENT: xg_maxpool(x, bad); break;
    case XG_ERR_NAME: xg_name(x, "layer4"); xg_find(t, "layr4"); break;
    case XG_ERR_RULE: xg_bounds(xg_softmax(x), x, x, x, &lo, &hi); break;
    case XG_ERR_TAPE: xg_add(x, leaf(other, 2, 3, 4, 4)); break;
    case XG_ERR_NONFINITE: {
        xg_scope s = xg_scope_new(t, p, NULL, true);
        xg_rng rng = xg_rng_seed(1);
        xg_optim sgd;
        memset(&sgd, 0, sizeof sgd);
        s.rng = &rng;
        xg_optim_step(&sgd, p, xg_log(xg_affine(xg_sum(xg_square(xg_dense(&s, "fc", x, 2, true))), -1, 0)));
        break;
    }
    case XG_ERR_IO: xg_params_load(p, "/nowhere/at/all.safetensors", NULL, NULL); break;
    case XG_ERR_FORMAT: xg_params_parse(p, "not a safetensors file", 22, NULL, NULL); break;
    case XG_ERR_UNSUPPORTED: xg_npy_parse(t, numpy_complex, sizeof numpy_complex - 1); break;
    case XG_ERR_OK: case XG_ERR_COUNT: break;
    }
    error = *xg_tape_error(t);
    if (error.code == XG_ERR_OK) error = *xg_params_error(p);
    xg_tape_free(t);
    xg_tape_free(other);
    xg_params_free(p);
    return error;
}

static void test_every_error_code_has_a_cause_and_a_sentence(void)
{
    for (int code = XG_ERR_OK + 1; code < XG_ERR_COUNT; code++) {
        xg_error error = provoke((xg_code)code);
        CHECK_ERROR(&error, (xg_code)code);
        CHECK(strlen(xg_code_name((xg_code)code)) > 1 && strlen(xg_code_meaning((xg_code)code)) > 5);
    }
    CHECK(!strcmp(xg_code_name(XG_ERR_COUNT), "?") && strstr(xg_code_meaning(XG_ERR_COUNT), "no such"));
}

static void test_sentences_name_operation_and_shapes(void)
{
    xg_error error = provoke(XG_ERR_SHAPE);
    CHECK(strstr(error.text, "add") && strstr(error.text, "'left' [2 3 4 4]") &&
          strstr(error.text, "[2 2 4 4]"));
    error = provoke(XG_ERR_NAME);
    CHECK(strstr(error.text, "layr4") && strstr(error.text, "layer4"));
}

static void test_the_first_error_sticks_and_poison_reads_as_nan(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = leaf(t, 1, 2, 3, 4), *good = xg_exp(x);
    xg_tensor *bad = xg_add(x, leaf(t, 1, 3, 3, 4));
    CHECK(xg_failed(t));
    xg_tensor *later = xg_matmul(xg_exp(bad), bad, false, false);
    xg_error first = *xg_tape_error(t);
    xg_fail(t, XG_ERR_IO, "second");
    CHECK(!strcmp(first.text, xg_tape_error(t)->text));
    CHECK(xg_item(later) != xg_item(later));
    CHECK(xg_item(good) != xg_item(good));              /* nothing reads as if all were well          */
    xg_real some[3] = { 1, 2, 3 };
    CHECK(xg_read(good, some, 3) == 0 && some[2] != some[2]);
    CHECK(xg_leaf_data(x) == NULL);
    xg_clear_error(t);
    CHECK_NEAR(xg_item(good), 1, 0);
    CHECK(!xg_failed(t));
    xg_exp(bad);                                        /* poison of before cannot come back          */
    CHECK_ERROR(xg_tape_error(t), XG_ERR_ARGUMENT);
    xg_tape_free(t);
}

/* A request that cannot be met, by number; what the error says of it, or NULL past the last. */
static const char *ask_amiss(xg_tape *t, int which)
{
    const int label[2] = { 0, 3 };
    const xg_window k = { 2, 2, 2, 0, 1, 1 }, wide = { 3, 3, 1, 2, 1, 1 }, large = { 9, 9, 1, 0, 1, 1 };
    const xg_window groups = { 0, 0, 1, 0, 1, 3 }, astride = { 2, 2, 1, 3, 6, 1 };
    const xg_shape x_shape = xg_shape4(2, 3, 4, 5), long_row = xg_shape4(1, 1, 1, INT_MAX);
    static const xg_real one[1] = { 1 };
    const xg_optim sgd = { XG_SGD, 0, 0, false, 0, 0, 0, 0, 0, XG_CONSTANT, 0, 0, 0, 0, NULL, NULL };
    xg_tensor *x = leaf(t, 2, 3, 4, 5), *other = leaf(t, 2, 3, 5, 4), *a, *b;
    switch (which) {
    case 0: return xg_leaf_data(xg_exp(x)) ? "" : "only leaves";
    case 1: xg_one_hot(t, label, 2, 3); return "label 3 of sample 1";
    case 2: leaf(t, 1, 0, 1, 1); return "at least 1";
    case 3: xg_sum_to(x, xg_shape4(2, 1, 2, 5)); return "stay or become 1";
    case 4: xg_expand(x, xg_shape4(2, 6, 4, 5)); return "stay or grow";
    case 5: xg_reshape(x, xg_shape4(2, 3, 4, 6)); return "must stay the same";
    case 6: xg_slice(x, xg_shape4(0, 0, 1, 0), xg_shape4(2, 3, 4, 5)); return "inside the tensor";
    case 7: xg_concat(x, other, 1); return "must agree";
    case 8: xg_matmul(x, x, false, false); return "inner extents";
    case 9: xg_upsample(x, 0, 4); return "at least 1";
    case 10: xg_topk_threshold(x, 61); return "between 1 and";
    case 11: xg_bounds(xg_relu(x), x, other, x, &a, &b); return "shaped like x";
    case 12: xg_split(xg_relu(x), x, other, &a, &b); return "shaped like x";
    case 13: xg_permute(x, 0, 1, 2, 4); return "axes are";
    case 14: xg_permute(x, 0, 1, 2, 2); return "named once";
    case 15: xg_concat(x, x, 4); return "the axis is";
    case 16: xg_pad(x, xg_shape4(0, 0, 1, 0), x_shape); return "at that place";
    case 17: xg_expand(xg_scalar(t, 1), xg_shape4(INT_MAX, INT_MAX, INT_MAX, 1)); return "too large";
    case 18: xg_matmul(x, leaf(t, 3, 3, 5, 4), false, false); return "batch axes";
    case 19: xg_conv2d(x, leaf(t, 6, 2, 1, 1), k); return "channels differ";
    case 20: xg_conv2d(x, leaf(t, 4, 1, 1, 1), groups); return "divide the outputs";
    case 21: xg_conv2d_dw(x, leaf(t, 1, 6, 2, 2), k, xg_shape4(6, 3, 2, 2)); return "batch or outputs";
    case 22: xg_conv2d(x, leaf(t, 6, 3, 9, 9), k); return "do not fit the input";
    case 23: xg_maxpool(x, wide); return "half the window";
    case 24: xg_avgpool(x, large); return "larger than the input";
    case 25: xg_avgpool_t(x, k, x_shape); return "the asked shape";
    case 26: xg_argpool(xg_expand(xg_scalar(t, 1), xg_shape4(1, 1, 4097, 4096)), k); return "exact index";
    case 27: xg_upsample_t(x, xg_shape4(2, 1, 2, 2)); return "must stay the same";
    case 28: xg_gather(x, leaf(t, 2, 2, 1, 1)); return "batch and channels of x";
    case 29: xg_data(xg_gather(x, xg_full(t, xg_shape4(1, 1, 1, 1), 20))); return "outside the plane";
    case 30: xg_scatter(other, leaf(t, 2, 3, 4, 5), x_shape); return "like the gathered";
    case 31: xg_gradcheck(NULL, NULL, &x, 17, 1, 0, NULL); return "at most 16 inputs";
    case 32: xg_optim_step(&sgd, NULL, xg_sum(x)); return "no store";
    case 33: xg_flatten(xg_expand(xg_scalar(t, 1), xg_shape4(1, 65536, 256, 256))); return "same";
    case 34: a = xg_expand(xg_scalar(t, 1), long_row); xg_concat(a, a, 3); return "too long";
    case 35: xg_leaf_borrow(t, x_shape, NULL); return "data is NULL";
    case 36: xg_leaf_borrow(t, xg_shape4(1, 1, 1, 0), one); return "at least 1";
    case 37: a = xg_leaf_borrow(t, xg_shape4(1, 1, 1, 1), one); return xg_leaf_data(a) ? "" : "a borrowed leaf";
    case 38: xg_maxpool(x, astride); return "meets no number";
    default: return NULL;
    }
}

static void test_what_cannot_be_is_refused(void)
{
    bool more = true;
    for (int which = 0; more; which++) {
        xg_tape *t = xg_tape_new(NULL);
        const char *says = ask_amiss(t, which);
        more = says != NULL;
        if (more) {
            const xg_error *error = xg_tape_error(t);
            CHECK(error->code == XG_ERR_SHAPE || error->code == XG_ERR_ARGUMENT);
            if (!strstr(error->text, says)) test_fail_(__FILE__, __LINE__, error->text);
        }
        xg_tape_free(t);
    }
}

/* What comes from an allocator that takes nothing back. */
static void *allocate_for_good(void *user, size_t bytes)
{
    void **at = (void **)user, *memory = *at;
    *at = (char *)memory + bytes;
    return bytes <= (size_t)1 << 18 ? memory : NULL;
}

static void test_an_allocator_may_have_no_release(void)
{
    static double room[1 << 16];
    void *at = room;
    xg_config config;
    memset(&config, 0, sizeof config);
    config.alloc = allocate_for_good;
    config.memory_user = &at;
    xg_tape *t = xg_tape_new(&config);
    CHECK_NEAR(xg_item(xg_exp(xg_scalar(t, 0))), 1, 0);
    CHECK(at > (void *)room && xg_tape_stats(t).reserved == (size_t)((char *)at - (char *)room));
    xg_tape_free(t);
}

/* Memory with a fence of zeros behind each block. */
enum { FENCE = 1 << 26, BLOCKS = 8 };
typedef struct fenced { int count; size_t bytes[BLOCKS]; unsigned char *block[BLOCKS]; } fenced;

static void *fenced_alloc(void *user, size_t bytes)
{
    fenced *f = (fenced *)user;
    unsigned char *block = f->count < BLOCKS ? (unsigned char *)calloc(bytes + FENCE, 1) : NULL;
    if (!block) return NULL;
    f->bytes[f->count] = bytes;
    return f->block[f->count++] = block;
}

/* A caller's threads may be many: each has its own scratch. */
static void test_every_worker_has_room(void)
{
    int workers = 300;
    fenced f;
    xg_config config = level_config(NULL, &workers);
    memset(&f, 0, sizeof f);
    config.alloc = fenced_alloc;
    config.memory_user = &f;
    xg_tape *t = xg_tape_new(&config);
    xg_tensor *x = xg_full(t, xg_shape4(1, 400, 16, 16), 1);
    CHECK_NEAR(xg_item(xg_matmul(x, x, false, false)), 16, 0);
    CHECK_OK(t);
    xg_tape_free(t);
    for (int i = 0; i < f.count; i++) {
        const unsigned char *fence = f.block[i] + f.bytes[i];
        CHECK(fence[0] == 0 && !memcmp(fence, fence + 1, FENCE - 1));
        free(f.block[i]);
    }
}

static void test_no_tape_is_survived(void)
{
    xg_tensor *x = leaf(NULL, 1, 1, 1, 1);
    xg_tensor *y = xg_relu(xg_add(x, xg_exp(x)));
    CHECK(y && xg_item(y) != xg_item(y));
    CHECK(xg_failed(NULL));
    CHECK_ERROR(xg_tape_error(NULL), XG_ERR_MEMORY);
    CHECK(xg_item(xg_grad(y, x)) != 0);
    xg_tape_free(NULL);
    xg_params_free(NULL);
}

static void test_unknown_simd_level_is_refused(void)
{
    xg_config config;
    memset(&config, 0, sizeof config);
    config.simd = "sse9";
    CHECK(xg_tape_new(&config) == NULL);
    CHECK(xg_simd_count() >= 1 && !strcmp(xg_simd_name(0), "scalar"));
    CHECK(xg_simd_name(99) == NULL);
}

/* ---- memory ------------------------------------------------------------------------------------ */

static void test_mark_and_release(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_name(leaf(t, 1, 1, 2, 2), "x");
    xg_mark mark = xg_tape_mark(t);
    xg_stats before = xg_tape_stats(t);
    xg_tensor *y = xg_name(xg_exp(x), "y");
    xg_name(x, "alias");
    CHECK(xg_find(t, "y") == y && xg_find(t, "alias") == x);
    xg_tape_release(t, mark);
    CHECK(xg_tape_stats(t).bytes == before.bytes && xg_tape_stats(t).nodes == before.nodes);
    CHECK(xg_find(t, "x") == x && !strcmp(xg_name_of(x), "x"));
    CHECK_OK(t);
    xg_find(t, "alias");
    CHECK_ERROR(xg_tape_error(t), XG_ERR_NAME);
    xg_tape_reset(t);
    CHECK(!xg_failed(t) && xg_tape_stats(t).nodes == 0);
    xg_tape_free(t);
}

/* A step by two layers that also asks for the gradient by the picture, whose numbers are borrowed or
 * copied; returns the bits of the weights. */
static uint64_t step_with_leaf(xg_tensor *(*make)(xg_tape *, xg_shape, const xg_real *),
                               const xg_real *numbers, xg_real *slope)
{
    trainer a = trainer_new(NULL);
    xg_scope s = xg_scope_new(a.tape, a.params, &a.rng, true);
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    xg_mark mark = xg_tape_mark(a.tape);
    xg_stats before = xg_tape_stats(a.tape);
    xg_tensor *x = make(a.tape, xg_shape4(3, 1, 67, 83), numbers);
    xg_tensor *y = xg_affine(xg_relu(xg_affine(x, 0.5, 0.25)), 2, 0);
    xg_tensor *z = xg_dense(&s, "b", xg_relu(xg_dense(&s, "a", xg_flatten(y), 9, true)), 2, true);
    xg_tensor *loss = xg_mean(xg_square(z)), *g = xg_grad(loss, x);
    xg_read(g, slope, xg_size(x));
    xg_tensor *all = xg_add(loss, xg_add(xg_dot(g, x), xg_mean(xg_mul(x, x))));
    CHECK(xg_optim_step(&sgd, a.params, all) == XG_ERR_OK);
    CHECK((xg_data(x) == numbers) == (make == xg_leaf_borrow));
    CHECK_OK(a.tape);
    xg_tape_release(a.tape, mark);
    CHECK(xg_tape_stats(a.tape).bytes == before.bytes && xg_tape_stats(a.tape).nodes == before.nodes);
    uint64_t bits = fingerprint(a.params);
    trainer_free(&a);
    return bits;
}

/* Nothing reads beyond borrowed numbers, or writes to them: this block holds no more than they are. */
static void test_borrowed_numbers_are_read_where_they_lie(void)
{
    enum { SIZE = 3 * 67 * 83 };
    static xg_real old[SIZE], slope[2][SIZE];
    xg_real *numbers = (xg_real *)malloc(sizeof old);
    REQUIRE(numbers != NULL);
    xg_rng rng = xg_rng_seed(53);
    for (int i = 0; i < SIZE; i++) old[i] = numbers[i] = (xg_real)xg_rng_normal(&rng);
    uint64_t copied = step_with_leaf(xg_leaf, numbers, slope[0]);
    CHECK(step_with_leaf(xg_leaf_borrow, numbers, slope[1]) == copied);
    CHECK(memcmp(slope[0], slope[1], sizeof old) == 0 && memcmp(numbers, old, sizeof old) == 0);

    xg_tape *t = xg_tape_new(NULL);
    char *askew = (char *)numbers + 1;                  /* no address of a number: copied */
    memmove(askew, numbers, (SIZE - 1) * sizeof *numbers);
    xg_tensor *x = xg_leaf_borrow(t, xg_shape4(1, 1, 1, SIZE - 1), (xg_real *)(void *)askew);
    CHECK((const char *)xg_data(x) != askew);
    CHECK(memcmp(xg_data(x), old, (SIZE - 1) * sizeof *old) == 0);
    CHECK_OK(t);
    xg_tape_free(t);
    free(numbers);
}

/* Normalises a batch of one number in training. */
static xg_tensor *normalised(trainer *a, double value)
{
    xg_scope s = xg_scope_new(a->tape, a->params, &a->rng, true);
    return xg_batch_norm(&s, "norm", xg_full(a->tape, xg_shape4(2, 1, 2, 2), value), NULL);
}

/* Running statistics of before a mark move with the first step behind it, and only then. */
static void test_statistics_of_before_a_mark_move_once(void)
{
    trainer a = trainer_new(NULL);
    double mean = 0.1;
    normalised(&a, 1);
    xg_mark mark = xg_tape_mark(a.tape);
    for (int step = 0; step < 3; step++) {
        xg_full(a.tape, xg_shape4(1, 1, 50 * step + 1, 100), 1);       /* where an old one lay */
        CHECK(xg_optim_step(NULL, a.params, xg_sum(normalised(&a, step))) == XG_ERR_OK);
        mean += 0.1 * (step - mean);
        int at = xg_params_find(a.params, "norm.running_mean");
        CHECK_NEAR(xg_params_data(a.params, at)[0], mean, TOL(1e-6, 1e-14));
        xg_tape_release(a.tape, mark);
    }
    CHECK_OK(a.tape);
    trainer_free(&a);
}

static void test_names_find_the_latest(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *a = xg_name(leaf(t, 1, 1, 1, 1), "u"), *b = xg_name(leaf(t, 1, 1, 1, 1), "u");
    CHECK(a != b && xg_find(t, "u") == b);
    xg_tape_free(t);
}

static void test_memory_is_flat_over_many_guided_steps(void)
{
    trainer a = trainer_new(NULL);
    int steps = in_short_mode() ? 200 : IS_DOUBLE ? 2000 : 10000;
    for (int i = 0; i < 10; i++) guided_step(&a, i);
    xg_stats early = xg_tape_stats(a.tape);
    double loss = 0;
    for (int i = 10; i < steps; i++) loss = guided_step(&a, i);
    xg_stats late = xg_tape_stats(a.tape);
    CHECK_OK(a.tape);
    CHECK(late.peak == early.peak && late.reserved == early.reserved && late.bytes == early.bytes);
    CHECK(loss == loss);
    trainer_free(&a);
}

/* An allocator that fails from the n-th call on, and counts what was not given back. */
typedef struct stingy { int calls, allowed, alive; } stingy;

static void *stingy_alloc(void *user, size_t bytes)
{
    stingy *s = (stingy *)user;
    if (s->calls++ >= s->allowed) return NULL;
    s->alive++;
    return malloc(bytes);
}

static void stingy_release(void *user, void *memory)
{
    ((stingy *)user)->alive -= memory != NULL;
    free(memory);
}

static void test_every_allocation_of_a_training_step_may_fail(void)
{
    int reached_end = 0;
    for (int allowed = 0; allowed < 200 && !reached_end; allowed++) {
        stingy s = { 0, allowed, 0 };
        xg_config config;
        memset(&config, 0, sizeof config);
        config.alloc = stingy_alloc;
        config.release = stingy_release;
        config.memory_user = &s;
        trainer a = trainer_new(&config);
        if (a.tape && a.params) {
            double loss = guided_step(&a, 0);
            bool failed = loss != loss;
            if (failed) CHECK(xg_tape_error(a.tape)->code == XG_ERR_MEMORY ||
                              xg_params_error(a.params)->code == XG_ERR_MEMORY);
            reached_end = !failed;
        }
        trainer_free(&a);
        CHECK(s.alive == 0);
    }
    CHECK(reached_end);
}

/* The same at every size of a fixed buffer: here each single request is a place to fail. What fails
 * must leave the weights as they were. */
static void test_a_step_that_runs_out_of_room_changes_nothing(void)
{
    size_t step = in_short_mode() ? 16384 : 2048, most = (size_t)4 << 20;
    char *room = (char *)malloc(most);
    int failures = 0, done = 0;
    for (size_t size = 1024; size < most && !done; size += step) {
        xg_config config;
        memset(&config, 0, sizeof config);
        config.fixed = room;
        config.fixed_bytes = size;
        trainer a = trainer_new(NULL);
        double first = guided_step(&a, 0);              /* creates the weights in ample memory        */
        uint64_t before = fingerprint(a.params);
        xg_tape_free(a.tape);
        a.tape = xg_tape_new(&config);
        if (!a.tape) { trainer_free(&a); failures++; continue; }
        double loss = guided_step(&a, 1);
        if (loss != loss) {
            CHECK_ERROR(xg_tape_error(a.tape), XG_ERR_MEMORY);
            CHECK(fingerprint(a.params) == before);
            failures++;
        } else {
            CHECK(fingerprint(a.params) != before);
            done = 1;
        }
        CHECK(first == first);
        trainer_free(&a);
    }
    CHECK(done && failures > 3);
    free(room);
}

/* ---- the same bits ------------------------------------------------------------------------------ */

static uint64_t train_bits(const char *simd, int workers)
{
    xg_config config = level_config(simd, &workers);
    trainer a = trainer_new(&config);
    for (int i = 0; i < 5; i++) guided_step(&a, i);
    CHECK_OK(a.tape);
    uint64_t bits = fingerprint(a.params);
    trainer_free(&a);
    return bits;
}

static void test_same_bits_on_every_level_and_worker_count(void)
{
    uint64_t reference = train_bits("scalar", 1);
    for (int level = 0; level < xg_simd_count(); level++) {
        for (int workers = 1; workers <= 4; workers++) {
            CHECK(train_bits(xg_simd_name(level), workers) == reference);
        }
    }
}

/* ---- readings ----------------------------------------------------------------------------------- */

static void test_value_slope_and_curvature(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_scalar(t, 0.5);
    xg_tensor *f = xg_mul(xg_exp(x), xg_square(x));     /* e^x x^2                                    */
    xg_tensor *slope = xg_grad(f, x), *curvature = xg_grad(slope, x), *third = xg_grad(curvature, x);
    double e = exp(0.5);
    CHECK_NEAR(xg_item(f), e * 0.25, TOL(1e-6, 1e-14));
    CHECK_NEAR(xg_item(slope), e * (0.25 + 1), TOL(1e-6, 1e-14));
    CHECK_NEAR(xg_item(curvature), e * (0.25 + 2 + 2), TOL(1e-6, 1e-14));
    CHECK_NEAR(xg_item(third), e * (0.25 + 3 + 6), TOL(1e-6, 1e-14));
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_gradient_of_an_inner_node(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_scalar(t, 3), *u = xg_square(x), *y = xg_mul(u, u), *both[2], *out[2];
    both[0] = x;
    both[1] = u;
    xg_grads(y, NULL, both, 2, NULL, out);
    CHECK_NEAR(xg_item(out[1]), 18, 1e-6);              /* d u^2 / du = 2u                            */
    CHECK_NEAR(xg_item(out[0]), 108, 1e-6);             /* and on to x: 4x^3                          */
    xg_tensor *seed = xg_scalar(t, 0.5);
    xg_grads(y, seed, &x, 1, NULL, out);
    CHECK_NEAR(xg_item(out[0]), 54, 1e-6);
    xg_grads(y, leaf(t, 2, 1, 1, 1), &x, 1, NULL, out);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_SHAPE);
    xg_tape_free(t);
}

/* A net of everything that bounds and splits know. */
static xg_tensor *readable_net(xg_scope *s, xg_tensor *x, bool bias)
{
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = 3;
    conv.window.pad = 1;
    conv.bias = bias;
    xg_window pool = { 3, 3, 2, 1, 1, 1 };
    x = xg_maxpool(xg_relu(xg_conv(s, "a", x, 4, &conv)), pool);
    xg_tensor *skip = x;
    x = xg_add(skip, xg_relu(xg_conv(s, "b", x, 4, &conv)));
    x = xg_avgpool(xg_affine(x, -0.7, bias ? 0.1 : 0), pool);
    return xg_dense(s, "fc", x, 3, bias);
}

static void fill_biases(xg_params *params, xg_rng *rng)
{
    for (int i = 0; i < xg_params_count(params); i++) {
        if (!strstr(xg_params_name(params, i), "bias")) continue;
        size_t size = xg_shape_size(xg_params_shape(params, i));
        for (size_t j = 0; j < size; j++) xg_params_data(params, i)[j] = (xg_real)xg_rng_normal(rng) / 4;
    }
}

static void test_bounds_contain_the_net(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *p = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(9);
    xg_scope s = xg_scope_new(t, p, &rng, false);
    xg_shape shape = xg_shape4(1, 2, 6, 7);
    xg_tensor *x = xg_randn(t, shape, &rng);
    readable_net(&s, x, true);
    fill_biases(p, &rng);
    xg_tensor *y = readable_net(&s, x, true), *lo, *hi, *at_lo, *at_hi;
    xg_tensor *radius = xg_affine(xg_abs(xg_randn(t, shape, &rng)), 0.05, 0);
    xg_bounds(y, x, xg_sub(x, radius), xg_add(x, radius), &lo, &hi);
    xg_bounds(y, x, x, x, &at_lo, &at_hi);
    CHECK_OK(t);
    for (int k = 0; k < 3; k++) {
        CHECK_NEAR(xg_data(at_lo)[k], xg_data(y)[k], TOL(1e-5, 1e-12));
        CHECK_NEAR(xg_data(at_hi)[k], xg_data(y)[k], TOL(1e-5, 1e-12));
    }
    for (int trial = 0; trial < (in_short_mode() ? 100 : 2000); trial++) {
        xg_mark mark = xg_tape_mark(t);
        xg_tensor *to = xg_leaf(t, shape, NULL);
        for (size_t j = 0; j < xg_size(to); j++) {
            xg_leaf_data(to)[j] = (xg_real)(2 * xg_rng_uniform(&rng) - 1);
        }
        xg_tensor *inside = readable_net(&s, xg_add(x, xg_mul(radius, to)), true);
        for (int k = 0; k < 3; k++) {
            CHECK(xg_data(inside)[k] >= xg_data(lo)[k] - (xg_real)1e-5 &&
                  xg_data(inside)[k] <= xg_data(hi)[k] + (xg_real)1e-5);
        }
        xg_tape_release(t, mark);
    }
    xg_tape_free(t);
    xg_params_free(p);
}

/* Of a difference of two that vary each is taken at its worst, wherever the other is: with x in [1,3],
 * x - 2x lies in [1-6, 3-2]. What a reading has no rule for, it names. */
static void test_bounds_of_a_difference(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_scalar(t, 2), *at_one = xg_scalar(t, 1), *at_three = xg_scalar(t, 3), *lo, *hi;
    xg_bounds(xg_sub(x, xg_affine(x, 2, 0)), x, at_one, at_three, &lo, &hi);
    CHECK_NEAR(xg_item(lo), -5, 0);
    CHECK_NEAR(xg_item(hi), 1, 0);
    xg_bounds(xg_mul(x, xg_affine(x, 2, 0)), x, at_one, at_three, &lo, &hi);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_RULE);
    CHECK(strstr(xg_tape_error(t)->text, "mul"));
    xg_clear_error(t);
    xg_split(xg_tanh(x), x, at_one, &lo, &hi);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_RULE);
    CHECK(strstr(xg_tape_error(t)->text, "tanh"));
    xg_tape_free(t);
}

/* A y that does not depend on x is a point, whatever earlier readings left with it. Where maxima stand
 * has no bounds, and picking from a constant no split. */
static void test_forward_readings_of_what_x_does_not_reach(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_full(t, xg_shape4(1, 1, 4, 4), 2), *z = xg_scalar(t, 3), *y = xg_square(x);
    xg_tensor *lo, *hi, *beta, *gamma;
    xg_window pairs = { 2, 2, 2, 0, 1, 1 };
    xg_grad(y, x);
    xg_bounds(y, z, z, z, &lo, &hi);
    CHECK(lo == y && hi == y);
    xg_split(y, z, z, &beta, &gamma);
    CHECK(xg_item(beta) == 0 && gamma == y);
    CHECK_OK(t);
    xg_tensor *places = xg_argpool(x, pairs);
    xg_bounds(places, x, x, x, &lo, &hi);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_RULE);
    xg_clear_error(t);
    xg_split(xg_gather(xg_full(t, xg_shape_of(x), 1), places), x, x, &beta, &gamma);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_RULE);
    xg_tape_free(t);
}

static void test_a_seed_is_of_the_same_tape(void)
{
    xg_tape *t = xg_tape_new(NULL), *other = xg_tape_new(NULL);
    xg_tensor *x = xg_scalar(t, 2), *grad;
    xg_grads(xg_affine(x, 1, 3), xg_scalar(other, 1), &x, 1, NULL, &grad);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_TAPE);
    xg_tape_free(t);
    xg_tape_free(other);
}

static void test_split_adds_up(void)
{
    for (int bias = 0; bias < 2; bias++) {
        xg_tape *t = xg_tape_new(NULL);
        xg_params *p = xg_params_new(NULL);
        xg_rng rng = xg_rng_seed(19);
        xg_scope s = xg_scope_new(t, p, &rng, false);
        xg_tensor *x = xg_randn(t, xg_shape4(2, 2, 6, 7), &rng), *beta, *gamma;
        readable_net(&s, x, bias);
        fill_biases(p, &rng);
        xg_tensor *y = readable_net(&s, x, bias);
        xg_tensor *blob = xg_step(xg_randn(t, xg_shape4(2, 1, 6, 7), &rng));
        xg_split(y, x, xg_mul(x, blob), &beta, &gamma);
        CHECK_OK(t);
        for (int k = 0; k < 6; k++) {
            CHECK_NEAR(xg_data(beta)[k] + xg_data(gamma)[k], xg_data(y)[k], TOL(1e-5, 1e-12));
        }
        xg_split(y, x, x, &beta, &gamma);
        for (int k = 0; k < 6 && !bias; k++) {          /* all of x, no bias: beta is the output      */
            CHECK_NEAR(xg_data(beta)[k], xg_data(y)[k], TOL(1e-5, 1e-12));
            CHECK_NEAR(xg_data(gamma)[k], 0, TOL(1e-5, 1e-12));
        }
        xg_tape_free(t);
        xg_params_free(p);
    }
}

static void test_bounds_can_be_trained_through(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(29);
    xg_tensor *x = xg_randn(t, xg_shape4(1, 1, 1, 3), &rng), *w = xg_randn(t, xg_shape4(1, 1, 3, 2), &rng);
    xg_tensor *y = xg_relu(xg_matmul(x, w, false, false)), *lo, *hi;
    xg_bounds(y, x, xg_affine(x, 1, -0.1), xg_affine(x, 1, 0.1), &lo, &hi);
    xg_tensor *g = xg_grad(xg_sum(xg_sub(hi, lo)), w);
    double total = 0;
    for (size_t i = 0; i < xg_size(g); i++) total += fabs((double)xg_data(g)[i]);
    CHECK_OK(t);
    CHECK(total > 0);
    xg_tape_free(t);
}

/* Worst difference of two tensors of one shape, as a share of the largest number of the second. */
static double differs(xg_tensor *got, xg_tensor *want)
{
    double worst = 0, largest = 0;
    for (size_t j = 0; j < xg_size(want); j++) {
        double a = (double)xg_data(got)[j], b = (double)xg_data(want)[j];
        if (!(fabs(a - b) <= worst)) worst = fabs(a - b);      /* a NaN is the worst */
        largest = fmax(largest, fabs(b));
    }
    CHECK(largest > 0 && xg_shape_same(xg_shape_of(got), xg_shape_of(want)));
    return worst / largest;
}

/* The gradient of worst logits of a box about x, and what it took. The box is given as x less and
 * plus a radius, or as two tensors that say nothing of x. */
static double box_gradient(bool about, bool dense, xg_tensor **grad, int *count, trainer *a)
{
    xg_tape *t = a->tape;
    xg_rng rng = xg_rng_seed(39);
    xg_scope s = xg_scope_new(t, a->params, &rng, false);
    xg_tensor *x = xg_randn(t, xg_shape4(3, 2, 6, 7), &rng), *out[2];
    xg_tensor *radius = xg_affine(xg_abs(xg_randn(t, xg_shape4(3, 1, 6, 7), &rng)), 0.05, 0);
    xg_mlp_options mlp;
    memset(&mlp, 0, sizeof mlp);
    mlp.hidden = 9;
    xg_tensor *y = dense ? xg_mlp(&s, x, &mlp) : readable_net(&s, x, true);
    xg_tensor *lo = xg_sub(x, radius), *hi = xg_add(x, radius);
    xg_bounds(y, x, about ? lo : xg_affine(lo, 1, 0), about ? hi : xg_affine(hi, 1, 0), &out[0], &out[1]);
    xg_tensor *loss = xg_add(xg_dot(y, y), xg_add(xg_dot(out[0], out[1]), xg_dot(out[1], out[1])));
    xg_tensor *leaf[16];
    *count = xg_params_leaves(a->params, t, leaf, 14);
    leaf[*count] = x;
    leaf[*count + 1] = radius;
    *count += 2;
    xg_grads(loss, NULL, leaf, *count, NULL, grad);
    return xg_tape_stats(t).flops;
}

static void test_bounds_about_x_share_its_pass(void)
{
    for (int dense = 0; dense < 2; dense++) {
        trainer a = trainer_new(NULL), b = trainer_new(NULL);
        xg_tensor *got[16], *want[16];
        int count;
        double flops = box_gradient(true, dense, got, &count, &a);
        CHECK(flops < box_gradient(false, dense, want, &count, &b));
        for (int i = 0; i < count; i++) CHECK(differs(got[i], want[i]) <= TOL(2e-5, 1e-12));
        CHECK_OK(a.tape);
        CHECK_OK(b.tape);
        trainer_free(&a);
        trainer_free(&b);
    }
}

/* A box passes sums with constants as a centre and a radius: two dense layers in a row cost bounds
 * two products, of radii, since their centres are what the net made of x. */
static void test_bounds_keep_a_box(void)
{
    for (int second = 0; second < 2; second++) {
        trainer a = trainer_new(NULL);
        xg_rng rng = xg_rng_seed(45);
        xg_scope s = xg_scope_new(a.tape, a.params, &rng, false);
        xg_tensor *x = xg_randn(a.tape, xg_shape4(3, 7, 1, 1), &rng), *out[2], *want[2];
        xg_tensor *radius = xg_abs(xg_randn(a.tape, xg_shape4(1, 7, 1, 1), &rng));
        xg_tensor *h = xg_dense(&s, "a", x, 9, true), *some = xg_randn(a.tape, xg_shape_of(h), &rng);
        xg_tensor *y = xg_dense(&s, "b", second ? xg_sub(some, h) : xg_sub(h, some), 5, true);
        xg_tensor *lo = xg_sub(x, radius), *hi = xg_add(x, radius);
        double before = (xg_data(y), xg_tape_stats(a.tape).flops);
        xg_bounds(y, x, lo, hi, &out[0], &out[1]);
        CHECK(xg_data(out[0])[0] < xg_data(out[1])[0]);
        CHECK(xg_tape_stats(a.tape).flops == 2 * before);
        xg_bounds(y, x, xg_affine(lo, 1, 0), xg_affine(hi, 1, 0), &want[0], &want[1]);
        for (int i = 0; i < 2; i++) CHECK(differs(out[i], want[i]) <= TOL(2e-6, 1e-14));
        CHECK_OK(a.tape);
        trainer_free(&a);
    }
}

/* Who asks for the sum of input gradients over pictures alone has one picture's product. It is the sum,
 * and so are its derivatives; the gradients themselves are still there to be asked for. */
static void sum_of_input_gradients(bool detached)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(51);
    xg_window k = { 0, 0, 2, 1, 1, 2 };
    xg_shape one = xg_shape4(1, 4, 7, 6);
    xg_tensor *x = xg_randn(t, xg_shape4(5, 4, 7, 6), &rng), *w = xg_randn(t, xg_shape4(6, 2, 3, 3), &rng);
    if (detached) x = xg_detach(xg_affine(x, 2, 1));
    xg_tensor *y = xg_conv2d(x, w, k), *slope = xg_grad(xg_mul(y, xg_mul(y, y)), x);
    double before = xg_tape_stats(t).flops;
    xg_tensor *sum = xg_sum_to(slope, one);
    xg_data(sum);
    double pass = xg_tape_stats(t).flops - before;
    xg_tensor *each = xg_sum_to(xg_affine(slope, 1, 0), one);
    CHECK(differs(sum, each) <= TOL(1e-5, 1e-13));
    CHECK(xg_tape_stats(t).flops == before + 6 * pass);
    CHECK(differs(xg_grad(xg_mul(sum, sum), w), xg_grad(xg_mul(each, each), w)) <= TOL(1e-5, 1e-13));
    CHECK(differs(xg_grad(xg_mul(sum, sum), x), xg_grad(xg_mul(each, each), x)) <= TOL(1e-5, 1e-13));
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_input_gradients_are_summed_before_their_product(void)
{
    sum_of_input_gradients(false);
    sum_of_input_gradients(true);                      /* of an input that is a constant, too     */
}

/* Products of the same operands are one; those of others, of other numbers, of leaves that have
 * changed or tensors that are gone are not. */
static void test_products_are_computed_once(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(49);
    xg_window k = { 0, 0, 1, 1, 1, 1 }, wide = { 0, 0, 1, 2, 2, 1 };
    xg_tensor *x = xg_randn(t, xg_shape4(2, 3, 5, 5), &rng), *w = xg_randn(t, xg_shape4(4, 3, 3, 3), &rng);
    xg_tensor *m = xg_randn(t, xg_shape4(1, 1, 4, 4), &rng);
    xg_tensor *y = xg_conv2d(x, w, k), *g = xg_conv2d(x, w, wide);
    double flops = xg_tape_stats(t).flops;
    CHECK(xg_shape_same(xg_shape_of(y), xg_shape_of(g)) && y != g);
    CHECK(xg_conv2d(x, w, k) == y && xg_conv2d(x, w, wide) == g && xg_tape_stats(t).flops == flops);
    CHECK(xg_tape_stats(t).shared == 2);
    CHECK(xg_conv2d_dw(x, y, k, xg_shape_of(w)) == xg_conv2d_dw(x, y, k, xg_shape_of(w)));
    CHECK(xg_conv2d_dw(x, y, k, xg_shape_of(w)) != xg_conv2d_dw(x, g, k, xg_shape_of(w)));
    CHECK(xg_conv2d_dx(w, y, k, xg_shape_of(x)) == xg_conv2d_dx(w, y, k, xg_shape_of(x)));
    CHECK(xg_matmul(m, m, false, true) != xg_matmul(m, m, true, false));
    CHECK(xg_matmul(m, m, true, false) == xg_matmul(m, m, true, false));
    CHECK(xg_reshape(x, xg_shape4(6, 1, 5, 5)) != xg_reshape(x, xg_shape4(1, 6, 5, 5)));
    CHECK(xg_detach(x) != xg_detach(x) && xg_affine(x, 1, 0) != xg_affine(x, 1, 0));

    size_t shared = xg_tape_stats(t).shared;
    xg_mark mark = xg_tape_mark(t);
    for (int i = 0; i < 3; i++) {                      /* what a release takes is not found again */
        CHECK(xg_conv2d(x, w, k) == y);
        xg_tensor *inner = xg_matmul(m, xg_randn(t, xg_shape4(1, 1, 4, 4), &rng), false, false);
        CHECK(xg_tape_stats(t).shared == ++shared && xg_item(inner) == xg_item(inner));
        xg_tape_release(t, mark);
    }
    double before = xg_item(xg_matmul(m, m, false, false));
    xg_leaf_data(m)[0] += 1;
    CHECK(xg_item(xg_matmul(m, m, false, false)) != before);
    CHECK_OK(t);
    xg_tape_reset(t);
    xg_tensor *a = xg_full(t, xg_shape4(1, 1, 2, 2), 1);
    CHECK_NEAR(xg_item(xg_matmul(a, a, false, false)), 2, 0);
    xg_tape_free(t);
}

/* A product of store's weights with random rows, either way, against the same from a tape that keeps
 * nothing. */
static bool product_is_right(xg_scope *s, xg_tensor *w, int rows, bool along)
{
    xg_shape shape = xg_shape_of(w);
    xg_tensor *x = xg_randn(s->tape, xg_shape4(1, 1, rows, along ? shape.w : shape.h), s->rng);
    xg_tensor *y = xg_matmul(x, w, false, along);
    xg_data(y);
    if (xg_failed(s->tape)) return false;
    xg_tape *fresh = xg_tape_new(NULL);
    xg_tensor *same = xg_matmul(xg_leaf(fresh, xg_shape_of(x), xg_data(x)),
                                xg_leaf(fresh, shape, xg_data(w)), false, along);
    const xg_real *numbers = xg_data(same);
    bool right = !xg_failed(fresh) && !memcmp(xg_data(y), numbers, xg_size(y) * sizeof *numbers);
    xg_tape_free(fresh);
    return right;
}

/* Six products each way, all right; how many of them found packed weights. */
static size_t packed_products(xg_scope *s, xg_tensor *w, int rows)
{
    size_t before = xg_tape_stats(s->tape).packed;
    for (int i = 0; i < 12; i++) CHECK(product_is_right(s, w, rows, i % 2 == 0));
    CHECK_OK(s->tape);
    return xg_tape_stats(s->tape).packed - before;
}

/* Weights that are read again and again are packed once (4.12), and anew whenever their numbers are
 * others: by a step, through a leaf, in the store, from a file. */
static void test_packed_weights(void)
{
    static const int extents[][3] = { { 64, 70, 33 }, { 130, 140, 600 }, { 63, 40, 20 }, { 513, 40, 20 } };
    char path[64];
    snprintf(path, sizeof path, "test_core.%lx.tmp", (unsigned long)(uintptr_t)path);
    for (int round = 0; round < 8; round++) {
        if (in_short_mode() && round % 2 != round / 2 % 2) continue;   /* one worker or three, by turns */
        int rows = extents[round / 2][0], out = extents[round / 2][1], in = extents[round / 2][2];
        int workers = round % 2 ? 3 : 1;
        xg_config config = level_config(NULL, &workers);
        xg_rng rng = xg_rng_seed(50);
        xg_params *params = xg_params_new(NULL);
        xg_scope s = xg_scope_new(xg_tape_new(&config), params, &rng, true);
        xg_tensor *w = xg_param(&s, "w", xg_shape4(1, 1, out, in), XG_INIT_KAIMING, 1);
        size_t each = rows < 64 || rows > 512 ? 0 : 6;
        CHECK(xg_checkpoint_save(params, path, NULL, 0) == XG_ERR_OK);
        xg_mark mark = xg_tape_mark(s.tape);
        CHECK(packed_products(&s, w, rows) == each);
        xg_tensor *x = xg_randn(s.tape, xg_shape4(1, 1, rows, in), &rng);
        CHECK(xg_optim_step(NULL, params, xg_sum(xg_matmul(x, w, false, true))) == XG_ERR_OK);
        CHECK(packed_products(&s, w, rows) >= each);
        xg_leaf_data(w)[in] += 1;
        CHECK(packed_products(&s, w, rows) >= each);
        xg_tape_release(s.tape, mark);
        xg_params_data(params, 0)[in + 1] += 1;
        CHECK(packed_products(&s, w, rows) >= each);
        xg_tape_release(s.tape, mark);
        int notes = 0;
        CHECK(xg_checkpoint_load(params, path, NULL, 0, &notes) == XG_ERR_OK);
        CHECK(packed_products(&s, w, rows) >= each);
        xg_tape_free(s.tape);
        xg_params_free(params);
    }
    remove(path);
}

/* Memory from the system, unless it is shut. */
static void *shut_alloc(void *user, size_t bytes)
{
    const bool *shut = (const bool *)user;
    return *shut ? NULL : malloc(bytes);
}

static void shut_release(void *user, void *memory)
{
    (void)user;
    free(memory);
}

/* Without memory for packed weights, products are what they are with it, and the next one asks again.
 * A fixed buffer is never asked. */
static void test_no_memory_for_packed_weights(void)
{
    static const size_t packed[] = { 0, 0, 0, 0, 0, 0, 0, 1 };
    const int room = 1 << 19;                  /* enough for products, too little for the weights */
    for (int fixed = 0; fixed < 2; fixed++) {
        bool shut = false;
        xg_config config;
        memset(&config, 0, sizeof config);
        config.alloc = shut_alloc;
        config.release = shut_release;
        config.memory_user = &shut;
        config.fixed_bytes = (size_t)32 << 20;
        config.fixed = fixed ? malloc(config.fixed_bytes) : NULL;
        xg_rng rng = xg_rng_seed(51);
        xg_params *params = xg_params_new(NULL);
        xg_scope s = xg_scope_new(xg_tape_new(&config), params, &rng, true);
        xg_tensor *w = xg_param(&s, "w", xg_shape4(1, 1, 600, 2000), XG_INIT_KAIMING, 1);
        xg_mark mark = xg_tape_mark(s.tape);
        xg_full(s.tape, xg_shape4(1, 1, 1, room), 0);
        xg_tape_release(s.tape, mark);
        for (int i = 0; i < 8; i++) {
            shut = i == 4 || i == 5;
            CHECK(product_is_right(&s, w, 64, false));
            CHECK(xg_tape_stats(s.tape).packed == (fixed ? 0 : packed[i]));
            if (i < 6) xg_tape_release(s.tape, mark);
        }
        CHECK_OK(s.tape);
        xg_tape_free(s.tape);
        xg_params_free(params);
        free(config.fixed);
    }
}

/* Memory from the system, so much in all. A block begins with its size. */
static void *limited_alloc(void *user, size_t bytes)
{
    size_t *left = (size_t *)user, *block = bytes <= *left ? (size_t *)malloc(bytes + 64) : NULL;
    if (!block) return NULL;
    *left -= *block = bytes;
    return block + 8;
}

static void limited_release(void *user, void *memory)
{
    size_t *block = (size_t *)memory - 8;
    *(size_t *)user += *block;
    free(block);
}

/* Six products with the same weights; whether the last of them found these packed. */
static bool packs(xg_scope *s, xg_tensor *w)
{
    size_t before = xg_tape_stats(s->tape).packed;
    xg_tensor *x = xg_randn(s->tape, xg_shape4(1, 1, 64, xg_shape_of(w).h), s->rng);
    for (int i = 0; i < 6; i++) xg_data(xg_matmul(xg_affine(x, i, 1), w, false, false));
    return xg_tape_stats(s->tape).packed > before;
}

/* Where memory runs out, packed weights go first, whoever asks. After a release they are kept again. */
static void test_packed_weights_are_given_up(void)
{
    if (IS_DOUBLE && in_short_mode()) SKIP("large weights in double take minutes under the sanitizers");
    for (int of_product = 0; of_product < 2; of_product++) {
        size_t left = (size_t)1 << 30;
        xg_config config;
        memset(&config, 0, sizeof config);
        config.alloc = limited_alloc;
        config.release = limited_release;
        config.memory_user = &left;
        xg_rng rng = xg_rng_seed(52);
        xg_params *params = xg_params_new(NULL);
        xg_scope s = xg_scope_new(xg_tape_new(&config), params, &rng, true);
        xg_tensor *w = xg_param(&s, "w", xg_shape4(1, 1, 2000, 1600), XG_INIT_KAIMING, 1);
        xg_mark mark = xg_tape_mark(s.tape);
        CHECK(packs(&s, w));
        left = 0;
        if (!of_product) CHECK(xg_data(xg_full(s.tape, xg_shape4(1, 1, 1000, 1000), 1))[0] == 1);
        for (int i = 0; i < 20 && left == 0 && !xg_failed(s.tape); i++) {
            CHECK(product_is_right(&s, w, 64, false));
        }
        CHECK_OK(s.tape);
        CHECK(left > 0);
        left = (size_t)1 << 30;
        CHECK(!packs(&s, w));
        xg_tape_release(s.tape, mark);
        CHECK(packs(&s, w));
        xg_tape_free(s.tape);
        xg_params_free(params);
    }
}

/* Of packed weights, `before` need a second chunk and one a third, which a release takes back: the
 * rest of the second is free again and becomes that of `small`, whose numbers stay its own. */
static void test_packed_weights_after_a_release(void)
{
    enum { ROOM = 1 << 25, BEFORE = 2, LARGE = IS_DOUBLE ? 160 : 224, SMALL = 72 };
    static const char *const name[] = { "before0", "before1", "within", "small", "after" };
    unsigned char *room = (unsigned char *)malloc(ROOM);
    REQUIRE(room != NULL);
    rising memory = { room, room + ROOM };
    xg_config config = rising_config(&memory);
    xg_rng rng = xg_rng_seed(53);
    xg_params *params = xg_params_new(NULL);
    xg_scope s = xg_scope_new(xg_tape_new(&config), params, &rng, true);
    xg_tensor *w[5];
    for (int i = 0; i < 5; i++) {
        const int side = i == 3 ? SMALL : LARGE;
        w[i] = xg_param(&s, name[i], xg_shape4(1, 1, side, side), XG_INIT_KAIMING, 1);
    }
    for (int i = 0; i < BEFORE; i++) CHECK(packs(&s, w[i]));
    for (int round = 0; round < 2; round++) {
        xg_mark mark = xg_tape_mark(s.tape);
        for (int i = round ? 3 : 2; i < (round ? 5 : 3); i++) CHECK(packs(&s, w[i]));
        for (int i = 0; i < 5; i++) CHECK(product_is_right(&s, w[i], 64, false));
        xg_tape_release(s.tape, mark);
    }
    CHECK_OK(s.tape);
    xg_tape_free(s.tape);
    xg_params_free(params);
    free(room);
}

static void test_rule_tables(void)
{
    static const xg_real in[] = { 1, -1, 2 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 3), in), *g;
    static const xg_real up[] = { 3, 5, -7 };
    xg_tensor *y = xg_relu(x), *seed = xg_leaf(t, xg_shape4(1, 1, 1, 3), up);
    static const double expected[3][3] = { { 3, 0, -7 }, { 3, 0, 0 }, { 3, 5, 0 } };
    xg_rules table[3];
    table[0] = xg_rules_plain();                        /* where x > 0                                */
    table[1] = xg_rules_guided();                       /* and the cotangent is positive              */
    table[2] = xg_rules_deconv();                       /* where the cotangent is positive            */
    for (int k = 0; k < 3; k++) {
        xg_grads(y, seed, &x, 1, &table[k], &g);
        for (int i = 0; i < 3; i++) CHECK_NEAR(xg_data(g)[i], expected[k][i], 0);
    }
    CHECK_NEAR(xg_data(xg_neg(x))[2], -2, 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_names_of_things(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_window k = { 1, 2, 1, 0, 1, 1 };
    static const xg_real in[] = { 1, 4, 2 };
    xg_tensor *where = xg_argpool(xg_leaf(t, xg_shape4(1, 1, 1, 3), in), k);
    CHECK_NEAR(xg_data(where)[0], 1, 0);
    CHECK_NEAR(xg_data(where)[1], 1, 0);
    CHECK(!strcmp(xg_op_name(xg_op_of(where)), "argpool") && strlen(xg_op_formula(XG_OP_conv2d)) > 3);
    CHECK(!strcmp(xg_op_name(XG_OP_COUNT), "?"));
    CHECK(!strcmp(xg_version(), XG_VERSION));
    const char *forced = getenv("XG_SIMD");
    CHECK(!strcmp(xg_tape_simd(t), forced && forced[0] ? forced : xg_simd_best()));
    xg_tape_free(t);
}

/* Asked for at once if `at_once`, else it waits. */
static xg_tensor *asked(xg_tensor *x, bool at_once)
{
    if (at_once) xg_data(x);
    return x;
}

/* Rows that are the same are made once. Those that differ in a number, an order, or the sign of a
 * zero are not the same. */
static void test_rows_made_once(void)
{
    const xg_shape s = xg_shape4(3, 4, 7, 5), per_channel = xg_shape4(1, 4, 1, 1);
    for (int kind = 0; kind < 5; kind++) {
        const double p = kind == 1 ? 3 : 2, q = kind == 2 ? -0.0 : 0;
        xg_tensor *y[2];
        xg_tape *t = xg_tape_new(NULL);
        xg_rng rng = xg_rng_seed(3);
        xg_tensor *x = xg_randn(t, s, &rng), *b = xg_randn(t, per_channel, &rng);
        xg_leaf_data(x)[0] = (xg_real)-0.0;
        for (int way = 0; way < 2; way++) {
            xg_tensor *first = asked(xg_affine(x, 2, 0), way), *second = asked(xg_affine(x, p, q), way);
            first = asked(kind == 3 ? xg_sub(b, first) : xg_sub(first, b), way);
            second = asked(kind == 4 ? xg_add(second, b) : xg_sub(second, b), way);
            xg_tensor *z = asked(xg_mul(first, second), way);
            xg_tensor *mean = asked(xg_mean_to(z, per_channel), way);
            y[way] = asked(xg_mul(asked(xg_sub(z, mean), way), asked(xg_affine(x, p, q), way)), way);
        }
        CHECK(!memcmp(xg_data(y[0]), xg_data(y[1]), xg_size(y[0]) * sizeof(xg_real)));
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* Rows of one number each are made once a unit, if what they come from has a number a unit; else,
 * row by row. */
static void test_rows_of_one_number(void)
{
    const xg_shape s = xg_shape4(3, 40, 7, 5), unit = xg_shape4(1, 40, 1, 1);
    const xg_shape from[] = { { 1, 40, 1, 1 }, { 3, 40, 1, 1 }, { 3, 1, 1, 1 }, { 1, 1, 1, 1 } };
    for (int kind = 0; kind < 4; kind++) {
        xg_tensor *y[2];
        xg_tape *t = xg_tape_new(NULL);
        xg_rng rng = xg_rng_seed(3);
        xg_tensor *x = xg_randn(t, s, &rng), *own = xg_randn(t, from[kind], &rng);
        for (int way = 0; way < 2; way++) {
            xg_tensor *row = asked(xg_affine(asked(xg_expand(own, s), way), -1, 0.5), way);
            xg_tensor *z = asked(xg_add(x, row), way), *mean = asked(xg_mean_to(z, unit), way);
            y[way] = asked(xg_mul(asked(xg_sub(z, mean), way), row), way);
        }
        CHECK(!memcmp(xg_data(y[0]), xg_data(y[1]), xg_size(y[0]) * sizeof(xg_real)));
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* Small units are taken several at once, short rows packed once for all sweeps: with units along one
 * axis or two, rows that lie together or apart, and for each unit numbers of its own, the same for
 * all, or (the last kind) the same for some. */
static void test_units_taken_together(void)
{
    const xg_shape shapes[] = { { 3, 150, 7, 5 }, { 5, 37, 20, 20 }, { 1, 99, 7, 7 } };
    for (int kind = 0; kind < 12; kind++) {
        const xg_shape s = shapes[kind % 3];
        const xg_shape unit = kind < 6 ? xg_shape4(1, s.c, 1, 1) : xg_shape4(s.n, s.c, 1, 1);
        const xg_shape own = kind / 3 % 2 ? xg_shape4(1, kind < 9 ? 1 : s.c, 1, 1) : unit;
        xg_tensor *y[2];
        xg_tape *t = xg_tape_new(NULL);
        xg_rng rng = xg_rng_seed(4);
        xg_tensor *x = xg_randn(t, s, &rng), *z = xg_randn(t, s, &rng);
        xg_tensor *e = xg_randn(t, xg_shape4(s.n, 1, 1, 1), &rng), *b = xg_randn(t, own, &rng);
        for (int way = 0; way < 2; way++) {
            xg_tensor *mean = asked(xg_mean_to(x, unit), way);
            xg_tensor *off = asked(xg_add(asked(xg_mul(mean, b), way), b), way);
            xg_tensor *w = asked(xg_mul(asked(xg_sub(x, off), way), z), way);
            w = asked(xg_add(asked(xg_mul(w, e), way), x), way);
            xg_tensor *part = asked(xg_affine(asked(xg_mean_to(w, unit), way), 3, 1), way);
            y[way] = asked(xg_mul(asked(xg_sub(w, part), way), asked(xg_sub(z, mean), way)), way);
        }
        CHECK(!memcmp(xg_data(y[0]), xg_data(y[1]), xg_size(y[0]) * sizeof(xg_real)));
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* What waits reads the numbers of the moment it was written down, not those of when it is asked. */
static void test_waiting_results_keep_old_numbers(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *p = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(1);
    xg_scope s = xg_scope_new(t, p, &rng, true);
    xg_tensor *x = xg_scalar(t, 2), *twice = xg_affine(x, 2, 0);
    xg_leaf_data(x)[0] = 5;
    CHECK_NEAR(xg_item(twice), 4, 0);
    CHECK_NEAR(xg_item(xg_affine(x, 2, 0)), 10, 0);

    xg_mark mark = xg_tape_mark(t);
    xg_tensor *w = xg_param(&s, "w", xg_shape4(1, 1, 1, 1), XG_INIT_ONE, 1);
    xg_tensor *flat = xg_reshape(w, xg_shape4(1, 1, 1, 1)), *asked_late = xg_affine(flat, 3, 0);
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    sgd.lr = 0.5;
    CHECK(xg_optim_step(&sgd, p, xg_square(w)) == XG_ERR_OK);   /* w: 1 - 0.5 * 2 = 0                 */
    CHECK_NEAR(xg_params_data(p, 0)[0], 0, 0);
    CHECK_NEAR(xg_item(asked_late), 3, 0);
    xg_tape_release(t, mark);

    xg_tensor *before = xg_affine(x, 1, 1);             /* waits; asked for only inside a mark        */
    mark = xg_tape_mark(t);
    CHECK_NEAR(xg_item(before), 6, 0);
    xg_tape_release(t, mark);
    leaf(t, 1, 1, 64, 64);                              /* takes the memory that was released         */
    CHECK_NEAR(xg_item(before), 6, 0);
    CHECK_OK(t);
    xg_tape_free(t);
    xg_params_free(p);
}

static void test_long_chains_do_not_wait_for_ever(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_scalar(t, 1), *y = x;
    for (int i = 0; i < 20000; i++) y = xg_affine(xg_add(y, x), 0.5, 0);
    CHECK_NEAR(xg_item(y), 1, 1e-6);
    CHECK_NEAR(xg_item(xg_grad(y, x)), 1, 1e-3);
    for (int i = 0; i < 1000; i++) y = xg_tanh(y);      /* each has a program of its own */
    CHECK_NEAR(xg_item(y), 0.0386, 1e-3);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* A loss through a chain of so many operations behind a max-pool, with a bias and, by turns, ReLU before
 * it. */
static xg_tensor *behind_a_pool(xg_tape *t, xg_params *p, int count, bool dear)
{
    const xg_window pairs = { 2, 2, 2, 0, 1, 1 };
    xg_rng rng = xg_rng_seed(1);
    xg_scope s = xg_scope_new(t, p, &rng, true);
    xg_tensor *w = xg_name(xg_param(&s, "w", xg_shape4(1, 2, 4, 4), XG_INIT_KAIMING, 1), "w");
    xg_tensor *b = xg_name(xg_param(&s, "b", xg_shape4(1, 2, 1, 1), XG_INIT_ONE, 1), "b");
    xg_tensor *y = xg_add(w, b);
    y = xg_maxpool(count % 2 ? xg_relu(y) : y, pairs);
    for (int i = 0; i < count; i++) y = dear ? xg_tanh(y) : xg_relu(xg_affine(y, 1.001, 0.01));
    return xg_sum(y);
}

/* A step moves weights as their gradient says. */
static void check_step(int count, bool dear)
{
    xg_tape *t = xg_tape_new(NULL), *apart = xg_tape_new(NULL);
    xg_params *p = xg_params_new(NULL), *same = xg_params_new(NULL);
    xg_tensor *loss = behind_a_pool(t, p, count, dear), *other = behind_a_pool(apart, same, count, dear);
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    sgd.lr = 1;
    CHECK(xg_optim_step(&sgd, p, loss) == XG_ERR_OK);
    for (int k = 0; k < 2; k++) {
        const xg_real *before = xg_params_data(same, k), *after = xg_params_data(p, k);
        xg_tensor *slope = xg_grad(other, xg_find(apart, xg_params_name(same, k)));
        for (size_t i = 0; i < xg_size(slope); i++) {
            CHECK_NEAR(after[i], before[i] - xg_data(slope)[i], 1e-5);
        }
    }
    CHECK_OK(t);
    CHECK_OK(apart);
    xg_params_free(p);
    xg_params_free(same);
    xg_tape_free(t);
    xg_tape_free(apart);
}

/* What waits too long runs at once, and what it read ends: rules that would read that do without. */
static void test_long_chains_behind_a_pool(void)
{
    for (int count = 60; count < 140; count++) check_step(count, false);
    for (int count = 1; count < 40; count++) check_step(count, true);
}

/* If more sums wait for rows than can run with these, some do: the rows are made once all the same. */
static void test_many_sums_of_the_same_rows(void)
{
    const size_t bytes = 64 * 32 * 32 * sizeof(xg_real);
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(1);
    xg_tensor *x = xg_randn(t, xg_shape4(1, 64, 32, 32), &rng), *y = x, *sum[12];
    for (int i = 0; i < 12; i++) {
        y = xg_add(xg_affine(y, 0.5, i), x);
        sum[i] = xg_sum_to(y, xg_shape4(1, 64, 1, 1));
    }
    size_t before = xg_tape_stats(t).bytes;
    xg_data(y);
    CHECK(xg_tape_stats(t).bytes - before < 2 * bytes);
    double expected = 0;
    for (int i = 0; i < 32 * 32; i++) expected += (double)xg_data(y)[i];
    CHECK_NEAR(xg_item(sum[11]), expected, 1e-5 * fabs(expected));
    CHECK_OK(t);
    xg_tape_free(t);
}

/* A guided step of ResNet-20 whose maps are large enough for results to be dropped and made again.
 * With `reading`, every named result is read on the way, which pins it. */
static uint64_t resnet_bits(bool reading, int workers, xg_stats *stats)
{
    xg_config config = level_config(NULL, &workers);
    trainer a = trainer_new(&config);
    int label[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
    for (int step = 0; step < 2; step++) {
        xg_mark mark = xg_tape_mark(a.tape);
        xg_scope s = xg_scope_new(a.tape, a.params, &a.rng, true);
        xg_rng data = xg_rng_seed(5);
        xg_tensor *x = xg_randn(a.tape, xg_shape4(8, 3, 16, 16), &data);
        xg_tensor *mask = xg_step(xg_randn(a.tape, xg_shape4(8, 1, 16, 16), &data));
        xg_resnet_options o;
        memset(&o, 0, sizeof o);
        o.depth = 20;
        xg_tensor *logits = xg_resnet(&s, x, &o);
        for (int stage = 1; reading && stage <= 3; stage++) {
            for (int part = 0; part < 6; part++) {
                char name[32];
                snprintf(name, sizeof name, part ? "layer%d.%d.bn%d" : "layer%d", stage, part / 2,
                         part % 2 + 1);
                double first = xg_item(xg_find(a.tape, name));
                CHECK(first == first);
            }
        }
        xg_tensor *map = xg_input_x_gradient(xg_pick(logits, label), x);
        if (reading) xg_data(map);
        xg_tensor *loss = xg_add(xg_cross_entropy(logits, label, NULL),
                                 xg_affine(xg_guide(map, mask, NULL), 0.05, 0));
        xg_optim sgd;
        memset(&sgd, 0, sizeof sgd);
        CHECK(xg_optim_step(&sgd, a.params, loss) == XG_ERR_OK);
        double before = xg_item(logits);               /* what was dropped can still be read */
        CHECK(before == before);
        *stats = xg_tape_stats(a.tape);
        xg_tape_release(a.tape, mark);
    }
    CHECK_OK(a.tape);
    uint64_t bits = fingerprint(a.params);
    trainer_free(&a);
    return bits;
}

static void test_dropping_and_reading_change_no_bit(void)
{
    xg_stats dropped, read;
    uint64_t bits = resnet_bits(false, 1, &dropped);
    CHECK(resnet_bits(true, 1, &read) == bits);
    CHECK(resnet_bits(false, 3, &read) == bits);
}

/* Has x, which is large and quickly made, read by a product; and after it three others, by which it is
 * no longer among what was read lately. */
static void read_and_push_out(xg_tensor *x)
{
    xg_tape *t = xg_tape_of(x);
    xg_tensor *column = xg_full(t, xg_shape4(1, 1, xg_shape_of(x).w, 1), 1), *other = leaf(t, 1, 1, 130, 130);
    xg_matmul(x, column, false, false);
    for (int i = 0; i < 3; i++) {
        xg_matmul(xg_affine(other, 1, i), xg_full(t, xg_shape4(1, 1, 130, 1), 1), false, false);
    }
}

/* Before a leaf is written, what reads it may have been dropped, and may be dropped after that. */
static void test_what_is_dropped_keeps_old_numbers(void)
{
    for (int which = 0; which < 4; which++) {
        xg_tape *t = xg_tape_new(NULL);
        xg_tensor *x = xg_full(t, xg_shape4(1, 1, 130, 130), 1), *twice = xg_affine(x, 2, 0);
        if (which & 1) read_and_push_out(twice);
        xg_real *data = xg_leaf_data(x);
        for (int i = 0; i < 130 * 130; i++) data[i] = 5;
        if (which & 2) read_and_push_out(twice);
        CHECK_NEAR(xg_item(twice), 2, 0);
        CHECK_NEAR(xg_item(xg_affine(x, 2, 0)), 10, 0);
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* Takes a step by a net with something long between two convolutions, which nothing else reads; that
 * is copied before the step or after it. Returns the bytes in use then. */
static size_t long_between(bool before, xg_real copy[4 * 6 * 32 * 32])
{
    trainer a = trainer_new(NULL);
    xg_scope s = xg_scope_new(a.tape, a.params, &a.rng, true);
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = 3;
    conv.window.pad = 1;
    xg_tensor *x = xg_conv(&s, "a", xg_randn(a.tape, xg_shape4(4, 3, 32, 32), &a.rng), 6, &conv);
    xg_tensor *y = xg_batch_norm(&s, "norm", x, NULL);
    for (int i = 0; i < 6; i++) y = xg_sub(xg_relu(xg_add(y, x)), xg_affine(y, 0.5, 0));
    xg_tensor *z = xg_conv(&s, "b", y, 5, &conv), *loss = xg_mean(xg_mul(z, z));
    const size_t bytes = xg_size(y) * sizeof *copy;
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    if (before) memcpy(copy, xg_data(y), bytes);
    CHECK(xg_optim_step(&sgd, a.params, loss) == XG_ERR_OK);
    xg_stats stats = xg_tape_stats(a.tape);
    if (!before) memcpy(copy, xg_data(y), bytes);
    CHECK_OK(a.tape);
    trainer_free(&a);
    return stats.bytes;
}

/* What only products read is given back in a step, and can be read after it. */
static void test_what_products_read_is_given_back(void)
{
    static xg_real kept[4 * 6 * 32 * 32], dropped[4 * 6 * 32 * 32];
    size_t more = long_between(true, kept), less = long_between(false, dropped);
    CHECK(memcmp(kept, dropped, sizeof kept) == 0);
    CHECK(less + sizeof kept <= more);
}

/* The bits of what a step by a loss makes of the weights; with `apart`, a step by a gradient that was
 * asked for before, whose parts are kept. */
static uint64_t step_bits(trainer *a, xg_tensor *loss, bool apart)
{
    xg_tensor *leaf[3], *grad[3];
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    if (apart) {
        int count = xg_params_leaves(a->params, a->tape, leaf, 3);
        CHECK(count > 0 && count <= 3);
        xg_grads(loss, NULL, leaf, count, NULL, grad);
        CHECK(xg_optim_apply(&sgd, a->params, leaf, grad, count) == XG_ERR_OK);
    } else {
        CHECK(xg_optim_step(&sgd, a->params, loss) == XG_ERR_OK);
    }
    CHECK_OK(a->tape);
    return fingerprint(a->params);
}

/* A step by two layers with a factor between, and a shift or none, whose maps are large. Notes the
 * most memory in use, in maps. */
static uint64_t scaled_step(bool shift, bool apart, double *maps)
{
    trainer a = trainer_new(NULL);
    xg_scope s = xg_scope_new(a.tape, a.params, &a.rng, true);
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = 1;
    xg_tensor *x = xg_randn(a.tape, xg_shape4(2, 4, 64, 64), &a.rng);
    xg_tensor *y = xg_affine(xg_conv(&s, "a", x, 32, &conv), 0.75, 0);
    const double map = (double)(xg_size(y) * sizeof(xg_real));
    if (shift) y = xg_add(y, xg_param(&s, "shift", xg_shape4(1, 32, 1, 1), XG_INIT_KAIMING, 1));
    CHECK(xg_data(y) != NULL);                         /* which therefore stays */
    xg_tensor *loss = xg_mean(xg_square(xg_conv(&s, "b", y, 4, &conv)));
    uint64_t bits = step_bits(&a, loss, apart);
    *maps = (double)xg_tape_stats(a.tape).peak / map;
    trainer_free(&a);
    return bits;
}

/* What is made of a map that a step reads for the last time takes the map's place, unless the map is
 * summed after that. */
static void test_results_take_the_place_of_what_ends(void)
{
    double least, more;
    CHECK(scaled_step(false, false, &least) == scaled_step(false, true, &more));
    CHECK(least < 4);                          /* two maps, what is sent to one, and small things */
    CHECK(scaled_step(true, false, &more) == scaled_step(true, true, &more));
}

/* Where two paths meet at a ReLU, the sum of what they send is not kept, only what passes of it. */
static void test_of_sums_at_a_relu_what_passes_is_kept(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(52);
    xg_window k = { 1, 1, 1, 0, 1, 1 };
    xg_tensor *x = xg_randn(t, xg_shape4(2, 4, 64, 64), &rng), *way[2], *sent[2];
    xg_tensor *w = xg_randn(t, xg_shape4(8, 4, 1, 1), &rng), *y = xg_relu(xg_conv2d(x, w, k));
    for (int i = 0; i < 2; i++) {
        sent[i] = xg_randn(t, xg_shape4(1, 8, 1, 1), &rng);
        way[i] = xg_conv2d(y, sent[i], k);
    }
    xg_tensor *z = xg_add(way[0], way[1]);
    xg_data(z);
    const size_t map = xg_size(y) * sizeof(xg_real), before = xg_tape_stats(t).bytes;
    xg_tensor *got = xg_grad(z, w);
    xg_data(got);
    CHECK(2 * (xg_tape_stats(t).bytes - before) < 7 * map);        /* both parts, and what passes */
    xg_tensor *one = xg_full(t, xg_shape_of(z), 1);
    for (int i = 0; i < 2; i++) sent[i] = xg_conv2d_dx(sent[i], one, k, xg_shape_of(y));
    xg_tensor *passed = xg_gate(xg_add(sent[1], sent[0]), y);
    CHECK(differs(got, xg_conv2d_dw(x, passed, k, xg_shape_of(w))) == 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* What a step's weights were made into reads as before it, even if it was given back. What one leaf
 * alone gives is not: for that, no step has to keep the leaf's old numbers. */
static void test_what_weights_give_outlives_steps(void)
{
    enum { SIDE = 130, SIZE = SIDE * SIDE };
    static xg_real old[2][SIZE];
    trainer a = trainer_new(NULL);
    xg_scope s = xg_scope_new(a.tape, a.params, &a.rng, true);
    const xg_shape square = xg_shape4(1, 1, SIDE, SIDE);
    xg_tensor *v = xg_param(&s, "v", square, XG_INIT_KAIMING, 1);
    xg_tensor *w = xg_param(&s, "w", square, XG_INIT_KAIMING, 1);
    xg_tensor *x = xg_randn(a.tape, square, &a.rng);
    xg_tensor *mask = xg_step(xg_randn(a.tape, square, &a.rng));
    xg_tensor *abs = xg_abs(v), *part = xg_mul(w, mask);
    xg_tensor *y = xg_add(xg_matmul(x, abs, false, false), xg_matmul(x, part, false, false));
    xg_tensor *loss = xg_mean(xg_mul(y, y));
    memcpy(old[0], xg_data(v), sizeof old[0]);
    memcpy(old[1], xg_data(w), sizeof old[1]);
    for (int i = 0; i < 2; i++) CHECK(xg_optim_step(NULL, a.params, loss) == XG_ERR_OK);
    CHECK(xg_data(v) == xg_params_data(a.params, xg_params_find(a.params, "v")));
    CHECK(xg_data(w) != xg_params_data(a.params, xg_params_find(a.params, "w")));
    int wrong = 0;
    for (int i = 0; i < SIZE; i++) {
        wrong += !(xg_data(abs)[i] == (xg_real)fabs((double)old[0][i]));
        wrong += !(xg_data(part)[i] == old[1][i] * xg_data(mask)[i]);
    }
    CHECK(wrong == 0);
    CHECK_OK(a.tape);
    trainer_free(&a);
}

/* A guided gradient of a net with one output or two; the explained score is the one that the loss is
 * built on, or (apart) an equal tensor that the loss does not know. Where the loss also looks at inner
 * numbers (beside), layers before those wait for a multiple of an earlier cotangent in vain. */
typedef struct shared_net { bool margin, norm, apart, beside; } shared_net;

/* The loss, and what the net's own pass costs. */
static xg_tensor *shared_loss(shared_net o, trainer *a, double *pass)
{
    xg_tape *t = a->tape;
    xg_rng rng = xg_rng_seed(3);
    xg_scope s = xg_scope_new(t, a->params, &rng, true);
    int label[6] = { 0, 1, 1, 0, 1, 0 };
    xg_tensor *x = xg_randn(t, xg_shape4(6, 2, 8, 8), &rng);
    xg_tensor *mask = xg_step(xg_randn(t, xg_shape4(6, 1, 8, 8), &rng));
    xg_cnn_options cnn;
    memset(&cnn, 0, sizeof cnn);
    cnn.width = 4;
    cnn.layers = 2;
    cnn.hidden = 5;
    cnn.classes = o.margin ? 2 : 1;
    cnn.batch_norm = o.norm;
    xg_tensor *logits = xg_cnn(&s, x, &cnn), *target = xg_leaf(t, xg_shape4(6, 1, 1, 1), NULL);
    *pass = xg_tape_stats(t).flops;
    for (int i = 0; i < 6; i++) xg_leaf_data(target)[i] = (xg_real)label[i];
    xg_tensor *score = o.margin ? xg_margin(logits, label) : logits;
    xg_tensor *right = o.margin ? xg_mean(xg_softplus(xg_neg(score))) : xg_bce_with_logits(score, target);
    xg_tensor *explained = o.apart ? xg_affine(score, 1, 0) : score;
    xg_tensor *map = xg_input_x_gradient(explained, x);
    if (o.beside) right = xg_add(right, xg_mean(xg_square(xg_find(t, "features"))));
    return xg_add(right, xg_affine(xg_guide(map, mask, NULL), 0.3, 0));
}

/* Returns what the loss and its gradient cost, in passes of the net. */
static double shared_gradient(shared_net o, xg_tensor **grad, trainer *a)
{
    double pass;
    xg_tensor *loss = shared_loss(o, a, &pass), *leaf[16];
    int count = xg_params_leaves(a->params, a->tape, leaf, 16);
    xg_grads(loss, NULL, leaf, count, NULL, grad);
    CHECK(count > 0 && count < 16);
    return xg_tape_stats(a->tape).flops / pass;
}

/* How far the weights after a step, whose last sweep keeps little, are from a's less grad. */
static double shared_step(shared_net o, trainer *a, xg_tensor **grad)
{
    trainer b = trainer_new(NULL);
    xg_optim sgd;
    double worst = 0, pass;
    memset(&sgd, 0, sizeof sgd);
    sgd.lr = 1;
    CHECK(xg_optim_step(&sgd, b.params, shared_loss(o, &b, &pass)) == XG_ERR_OK);
    CHECK(xg_tape_stats(b.tape).joined > 0);
    for (int i = 0, k = 0; i < xg_params_count(b.params); i++) {
        if (!xg_params_trainable(b.params, i)) continue;
        const xg_real *old = xg_params_data(a->params, i), *now = xg_params_data(b.params, i);
        for (size_t j = 0; j < xg_size(grad[k]); j++) {
            double off = fabs((double)old[j] - (double)xg_data(grad[k])[j] - (double)now[j]);
            if (!(off <= worst)) worst = off;
        }
        k++;
    }
    trainer_free(&b);
    return worst;
}

/* The gradient of a loss on one score a row for one of a product's operands, where an earlier sweep has
 * found that of the scores. The product is one of the convolution trio. */
static xg_tensor *taken_product(xg_tape *t, int which, int operand, bool before)
{
    const int n = 4, outputs = 4;                          /* weights have as many rows as the batch */
    xg_rng rng = xg_rng_seed(57);
    xg_window k = { 0, 0, 1, 0, 1, 1 };
    xg_shape image = xg_shape4(n, 3, 5, 5), weight = xg_shape4(outputs, 3, 3, 3);
    xg_tensor *x = xg_randn(t, image, &rng), *w = xg_randn(t, weight, &rng);
    xg_tensor *g = xg_randn(t, xg_shape4(n, outputs, 3, 3), &rng);
    xg_tensor *in[2] = { which == 1 ? w : x, which == 0 ? w : g };
    xg_tensor *y = which == 0 ? xg_conv2d(x, w, k) : which == 1 ? xg_conv2d_dx(w, g, k, image) :
                   xg_conv2d_dw(x, g, k, weight);
    xg_tensor *score = xg_sum_to(y, xg_shape4(n, 1, 1, 1));
    if (before) xg_grad(score, in[operand]);
    return xg_grad(xg_dot(score, score), in[operand]);
}

/* A factor for each sample is none for each row of weights, though there be as many. */
static void test_weights_are_no_samples(void)
{
    for (int which = 0; which < 6; which++) {
        xg_tape *a = xg_tape_new(NULL), *b = xg_tape_new(NULL);
        xg_tensor *got = taken_product(a, which / 2, which % 2, true);
        CHECK(differs(got, taken_product(b, which / 2, which % 2, false)) <= TOL(2e-5, 1e-12));
        CHECK_OK(a);
        xg_tape_free(a);
        xg_tape_free(b);
    }
}

/* What an earlier gradient found is taken over exactly where that is right: the same numbers, from
 * fewer operations; with batch statistics, which tie samples together, only as far as they allow. */
static void test_gradients_are_taken_over(void)
{
    for (int which = 0; which < 8; which++) {
        shared_net o = { which % 2 == 1, which / 2 % 2 == 1, false, which >= 4 };
        trainer a = trainer_new(NULL), b = trainer_new(NULL);
        xg_tensor *got[16], *want[16];
        double passes = shared_gradient(o, got, &a);
        CHECK_NEAR(shared_step(o, &a, got), 0, TOL(2e-6, 1e-13));
        o.apart = true;
        double all = shared_gradient(o, want, &b);
        CHECK(xg_tape_stats(a.tape).reused > 0 && xg_tape_stats(b.tape).reused == 0);
        CHECK(xg_tape_stats(a.tape).joined > 0 && xg_tape_stats(b.tape).joined == 0);
        CHECK(passes < all && (o.norm || o.beside || passes <= 4));
        for (int i = 0, k = 0; i < xg_params_count(a.params); i++) {
            if (!xg_params_trainable(a.params, i)) continue;
            CHECK(differs(got[k], want[k]) <= TOL(2e-5, 1e-12));
            k++;
        }
        CHECK_OK(a.tape);
        CHECK_OK(b.tape);
        trainer_free(&a);
        trainer_free(&b);
    }
}

/* A step by a loss that reads one weight three times. */
static uint64_t thrice_read(int which, bool apart)
{
    /* n, c, h, w, o, kernel, stride; kernel 0: a dense layer */
    static const int shape[][7] = {
        { 2,6,5,7, 9,1,1 }, { 3,40,14,14, 70,1,1 }, { 1,80,4,4, 20,1,1 }, { 1,10,40,50, 4,1,1 },
        { 2,20,9,8, 12,3,2 }, { 2,3,9,8, 12,3,1 }, { 1,3,30,30, 90,5,2 }, { 2,34,8,9, 48,3,1 },
        { 1,64,24,24, 64,3,1 }, { 7,50,1,1, 30,0,0 }, { 40,12,1,1, 300,0,0 }, { 600,33,1,1, 20,0,0 }
    };
    const int *e = shape[which];
    trainer a = trainer_new(NULL);
    xg_scope s = xg_scope_new(a.tape, a.params, &a.rng, true);
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = e[5];
    conv.window.stride = e[6];
    conv.window.pad = e[5] / 2;
    xg_tensor *loss = xg_scalar(a.tape, 0);
    for (int i = 0; i < 3; i++) {
        xg_tensor *x = xg_randn(a.tape, xg_shape4(e[0], e[1], e[2], e[3]), &a.rng);
        xg_tensor *y = e[5] ? xg_conv(&s, "w", x, e[4], &conv) : xg_dense(&s, "w", x, e[4], false);
        loss = xg_add(loss, xg_dot(y, xg_randn(a.tape, xg_shape_of(y), &a.rng)));
    }
    uint64_t bits = step_bits(&a, loss, apart);
    trainer_free(&a);
    return bits;
}

static void test_products_are_added_where_they_belong(void)
{
    for (int which = 0; which < 12; which++) CHECK(thrice_read(which, false) == thrice_read(which, true));
}

static void test_margin_is_cross_entropy(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(4);
    int label[5] = { 1, 0, 0, 1, 1 };
    xg_tensor *z = xg_randn(t, xg_shape4(5, 2, 1, 1), &rng), *m = xg_margin(z, label);
    for (int i = 0; i < 5; i++) {
        double own = (double)xg_data(z)[2 * i + label[i]], other = (double)xg_data(z)[2 * i + 1 - label[i]];
        CHECK_NEAR(xg_data(m)[i], own - other, TOL(1e-6, 1e-15));
    }
    CHECK_NEAR(xg_item(xg_mean(xg_softplus(xg_neg(m)))), xg_item(xg_cross_entropy(z, label, NULL)),
               TOL(1e-6, 1e-14));
    xg_margin(xg_full(t, xg_shape4(5, 3, 1, 1), 0), label);
    CHECK(xg_tape_error(t)->code == XG_ERR_SHAPE);
    xg_tape_free(t);
}

static void test_random_numbers(void)
{
    xg_rng a = xg_rng_seed(42), b = xg_rng_seed(42), c = xg_rng_seed(43);
    CHECK(xg_rng_next(&a) == xg_rng_next(&b) && xg_rng_next(&a) != xg_rng_next(&c));
    double mean = 0, square = 0;
    int counts[7] = { 0 }, items[5] = { 0, 1, 2, 3, 4 }, sum = 0;
    for (int i = 0; i < 70000; i++) {
        double v = xg_rng_normal(&a);
        mean += v / 70000;
        square += v * v / 70000;
        counts[xg_rng_below(&a, 7)]++;
    }
    CHECK(fabs(mean) < 0.02 && fabs(square - 1) < 0.03);
    for (int i = 0; i < 7; i++) CHECK(abs(counts[i] - 10000) < 500);
    CHECK(xg_rng_below(&a, 0) == 0 && xg_rng_below(&a, -3) == 0);
    xg_rng_shuffle(&a, items, 5);
    for (int i = 0; i < 5; i++) sum += 1 << items[i];
    CHECK(sum == 31);
}

/* Splitmix's numbers of seed 42 are known. Of normal ones, whose sums and products a compiler might
 * fuse, a sum of bits stands here, as two compilers on two processors agree on it. */
static void test_random_numbers_are_the_same_everywhere(void)
{
    xg_rng rng = xg_rng_seed(42);
    CHECK(xg_rng_next(&rng) == UINT64_C(13679457532755275413));
    uint64_t sum = 0, bits;
    for (int i = 0; i < 10000; i++) {
        double v = xg_rng_normal(&rng);
        memcpy(&bits, &v, sizeof bits);
        sum = 31 * sum + bits;
    }
    CHECK(sum == UINT64_C(10430933853178851836));
}

TEST_MAIN(
    TEST(test_every_error_code_has_a_cause_and_a_sentence)
    TEST(test_sentences_name_operation_and_shapes)
    TEST(test_the_first_error_sticks_and_poison_reads_as_nan)
    TEST(test_what_cannot_be_is_refused)
    TEST(test_an_allocator_may_have_no_release)
    TEST(test_every_worker_has_room)
    TEST(test_no_tape_is_survived)
    TEST(test_unknown_simd_level_is_refused)
    TEST(test_mark_and_release)
    TEST(test_borrowed_numbers_are_read_where_they_lie)
    TEST(test_statistics_of_before_a_mark_move_once)
    TEST(test_names_find_the_latest)
    TEST(test_memory_is_flat_over_many_guided_steps)
    TEST(test_every_allocation_of_a_training_step_may_fail)
    TEST(test_a_step_that_runs_out_of_room_changes_nothing)
    TEST(test_same_bits_on_every_level_and_worker_count)
    TEST(test_value_slope_and_curvature)
    TEST(test_gradient_of_an_inner_node)
    TEST(test_bounds_contain_the_net)
    TEST(test_bounds_of_a_difference)
    TEST(test_forward_readings_of_what_x_does_not_reach)
    TEST(test_a_seed_is_of_the_same_tape)
    TEST(test_split_adds_up)
    TEST(test_bounds_can_be_trained_through)
    TEST(test_bounds_about_x_share_its_pass)
    TEST(test_bounds_keep_a_box)
    TEST(test_input_gradients_are_summed_before_their_product)
    TEST(test_products_are_computed_once)
    TEST(test_packed_weights)
    TEST(test_no_memory_for_packed_weights)
    TEST(test_packed_weights_are_given_up)
    TEST(test_packed_weights_after_a_release)
    TEST(test_rule_tables)
    TEST(test_names_of_things)
    TEST(test_rows_made_once)
    TEST(test_rows_of_one_number)
    TEST(test_units_taken_together)
    TEST(test_waiting_results_keep_old_numbers)
    TEST(test_long_chains_do_not_wait_for_ever)
    TEST(test_long_chains_behind_a_pool)
    TEST(test_many_sums_of_the_same_rows)
    TEST(test_dropping_and_reading_change_no_bit)
    TEST(test_what_is_dropped_keeps_old_numbers)
    TEST(test_what_products_read_is_given_back)
    TEST(test_results_take_the_place_of_what_ends)
    TEST(test_of_sums_at_a_relu_what_passes_is_kept)
    TEST(test_what_weights_give_outlives_steps)
    TEST(test_gradients_are_taken_over)
    TEST(test_weights_are_no_samples)
    TEST(test_products_are_added_where_they_belong)
    TEST(test_margin_is_cross_entropy)
    TEST(test_random_numbers)
    TEST(test_random_numbers_are_the_same_everywhere)
)
