/* bench_works.c - the workloads: what people do with guided networks, in the library's public operations.
 *
 *     inf       logits of a batch                       gradreg   CE + |mask * d(sum log p)/dx|^2 (Ross 2017)
 *     train     CE, SGD with momentum                   mapkl     CE, then KL on a mapping layer alone
 *     guided    CE + Energy of input times gradient     pgd       CE(x) + CE(x after 7 masked steps)
 *     gradcam   CE + Energy of Grad-CAM at the last     ibp       CE(x) + CE(worst logits of a box)
 *               maps                                    intgrad, lime, insdel: explanations of a picture
 *
 * Each is one function that does a whole step and returns its loss; tools/peers.py holds the same steps
 * for other libraries. Inputs and labels are random: only the arithmetic matters. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static const double energy_weight = 0.1, regular_weight = 1e-3, radius = 0.3;
enum { PGD_STEPS = 7, IG_STEPS = 32, IG_CHUNK = 8, LIME_CHUNK = 100, INSDEL = 100, INSDEL_CHUNK = 20 };

/* ---- models ------------------------------------------------------------------------------------ */

static xg_tensor *resnet50_net(xg_scope *s, xg_tensor *x)
{
    xg_resnet_options o = { .depth = 50 };
    return xg_resnet(s, x, &o);
}

static xg_tensor *resnet18_net(xg_scope *s, xg_tensor *x)
{
    xg_resnet_options o = { .depth = 18, .classes = 10, .small_input = true };
    return xg_resnet(s, x, &o);
}

static xg_tensor *small_net(xg_scope *s, xg_tensor *x) { return xg_cnn(s, x, NULL); }
static xg_tensor *mlp_net(xg_scope *s, xg_tensor *x) { return xg_mlp(s, x, NULL); }

/* The small network with a mapping layer before its loss. */
static xg_tensor *mapping(xg_scope *s, xg_tensor *z) { return xg_dense(s, "m", z, 10, true); }
static xg_tensor *mapped_net(xg_scope *s, xg_tensor *x) { return mapping(s, small_net(s, x)); }

static const bench_model resnet50 = { resnet50_net, 3, 224, 1000 };
static const bench_model resnet18 = { resnet18_net, 3, 32, 10 };
static const bench_model small = { small_net, 3, 64, 10 };
static const bench_model mapped = { mapped_net, 3, 64, 10 };
static const bench_model mlp = { mlp_net, 1, 28, 10 };

/* ---- pieces of a step -------------------------------------------------------------------------- */

static xg_shape picture_shape(const bench_run *r, int n)
{
    const bench_model *m = r->work->model;
    return xg_shape4(n, m->channels, m->side, m->side);
}

static xg_scope scope_of(bench_run *r, bool train)
{
    return xg_scope_new(r->tape, r->params, &r->rng, train);
}

static xg_tensor *pictures(bench_run *r)
{
    return xg_leaf_borrow(r->tape, picture_shape(r, r->batch), r->x);
}

static xg_tensor *masks(bench_run *r)
{
    int side = r->work->model->side;
    return xg_leaf_borrow(r->tape, xg_shape4(r->batch, 1, side, side), r->mask);
}

static double norm_of(xg_tensor *x) { return sqrt(xg_item(xg_dot(x, x))); }

/* Takes a training step; returns the loss. */
static double learn(bench_run *r, const xg_optim *optim, xg_tensor *loss)
{
    xg_tensor *first, *gradient;
    if (r->probe && xg_params_leaves(r->params, r->tape, &first, 1) > 0) {
        xg_grads(loss, NULL, &first, 1, NULL, &gradient);
        r->norm = norm_of(gradient);
    }
    xg_optim_step(optim, r->params, loss);
    return xg_item(loss);
}

/* ---- training ---------------------------------------------------------------------------------- */

static double infer(bench_run *r)
{
    xg_scope s = scope_of(r, false);
    xg_tensor *logits = r->work->model->net(&s, pictures(r));
    return r->norm = norm_of(logits);
}

static double train(bench_run *r)
{
    xg_scope s = scope_of(r, true);
    xg_tensor *logits = r->work->model->net(&s, pictures(r));
    return learn(r, &r->optim, xg_cross_entropy(logits, r->label, NULL));
}

/* The map's positive part should lie inside the box. */
static double guide(bench_run *r, xg_tensor *logits, xg_tensor *map)
{
    xg_guide_options energy = { .loss = XG_LOSS_ENERGY };
    xg_tensor *outside = xg_affine(xg_guide(map, masks(r), &energy), energy_weight, 0);
    return learn(r, &r->optim, xg_add(xg_cross_entropy(logits, r->label, NULL), outside));
}

static double guided(bench_run *r)
{
    xg_scope s = scope_of(r, true);
    xg_tensor *x = pictures(r), *logits = r->work->model->net(&s, x);
    return guide(r, logits, xg_input_x_gradient(xg_pick(logits, r->label), x));
}

static double gradcam(bench_run *r)
{
    xg_scope s = scope_of(r, true);
    xg_tensor *logits = r->work->model->net(&s, pictures(r));
    return guide(r, logits, xg_grad_cam(xg_pick(logits, r->label), xg_find(r->tape, "features"), NULL));
}

/* Ross 2017: the gradient of the summed log-probabilities is small where the mask is 1. */
static double gradreg(bench_run *r)
{
    xg_scope s = scope_of(r, true);
    xg_tensor *x = pictures(r), *logits = r->work->model->net(&s, x);
    xg_tensor *slope = xg_mul(xg_grad(xg_sum(xg_log_softmax(logits)), x), masks(r));
    xg_tensor *penalty = xg_affine(xg_dot(slope, slope), regular_weight, 0);
    return learn(r, &r->optim, xg_add(xg_cross_entropy(logits, r->label, NULL), penalty));
}

/* Two stages: everything learns the labels through the mapping layer; then the mapping layer alone
 * learns to give for the whole picture what the network gives for its relevant part. */
static double mapkl(bench_run *r)
{
    xg_optim only_map = r->optim;
    only_map.only = only_map.slot = "m";
    xg_mark mark = xg_tape_mark(r->tape);
    double first = train(r);
    xg_tape_release(r->tape, mark);              /* the weights have changed: new leaves */
    xg_scope s = scope_of(r, true);
    xg_tensor *x = pictures(r);
    xg_no_grad(r->tape, true);                   /* nothing below the mapping layer is trained */
    xg_tensor *goal = xg_log_softmax(small_net(&s, xg_mul(x, masks(r)))), *logits = small_net(&s, x);
    xg_no_grad(r->tape, false);
    xg_tensor *given = xg_log_softmax(mapping(&s, logits));
    xg_tensor *kl = xg_affine(xg_dot(xg_exp(goal), xg_sub(goal, given)), 1.0 / r->batch, 0);
    bool probe = r->probe;
    r->probe = false;                            /* it is the first stage's gradient that counts */
    double second = learn(r, &only_map, kl);
    r->probe = probe;
    return first + second;
}

/* Heo 2023: the worst of a box, found by steps along the sign of the gradient. Only where the mask is 1. */
static double pgd(bench_run *r)
{
    xg_scope s = scope_of(r, true);
    xg_tensor *x = pictures(r), *mask = masks(r), *reach = xg_affine(mask, radius, 0), *worst = x;
    xg_tensor *clean = xg_cross_entropy(r->work->model->net(&s, x), r->label, NULL);
    for (int i = 0; i < PGD_STEPS; i++) {        /* the first starts from the clean pass itself */
        xg_tensor *moved = i == 0 ? x : xg_detach(worst), *loss = clean;
        if (i > 0) loss = xg_cross_entropy(r->work->model->net(&s, moved), r->label, NULL);
        xg_tensor *step = xg_mul(xg_sign(xg_grad(loss, moved)), xg_affine(mask, radius / 4, 0));
        worst = xg_max(xg_min(xg_add(moved, step), xg_add(x, reach)), xg_sub(x, reach));
    }
    xg_tensor *there = r->work->model->net(&s, xg_detach(worst));
    return learn(r, &r->optim, xg_add(clean, xg_cross_entropy(there, r->label, NULL)));
}

/* Heo 2023: the worst of a box, bounded: the label's logit at its lowest, the others at their highest. */
static double ibp(bench_run *r)
{
    xg_scope s = scope_of(r, true);
    xg_tensor *x = pictures(r), *reach = xg_affine(masks(r), radius / 10, 0), *lo, *hi;
    xg_tensor *logits = r->work->model->net(&s, x);
    xg_bounds(logits, x, xg_sub(x, reach), xg_add(x, reach), &lo, &hi);
    xg_tensor *own = xg_one_hot(r->tape, r->label, r->batch, r->work->model->classes);
    xg_tensor *worst = xg_add(hi, xg_mul(own, xg_sub(lo, hi)));
    return learn(r, &r->optim, xg_add(xg_cross_entropy(logits, r->label, NULL),
                                      xg_cross_entropy(worst, r->label, NULL)));
}

/* ---- explanations of one picture ---------------------------------------------------------------- */

static double intgrad(bench_run *r)
{
    xg_mark mark = xg_tape_mark(r->tape);
    xg_scope s = scope_of(r, false);
    xg_tensor *x = xg_leaf_borrow(r->tape, picture_shape(r, 1), r->x);
    const xg_path_options o = { .steps = IG_STEPS, .batch = r->batch };
    xg_tensor *map = xg_integrated_gradients(&s, r->work->model->net, x, r->label, &o);
    double total = xg_item(xg_sum(map));
    r->norm = sqrt(xg_item(xg_dot(map, map)));
    xg_tape_release(r->tape, mark);
    return total;
}

/* The label's mean probability over `count` pictures that fill() makes from the first one. */
static double mean_score(bench_run *r, int count, int chunk, void (*fill)(bench_run *, xg_real *, int))
{
    size_t size = xg_shape_size(picture_shape(r, 1));
    int classes = r->work->model->classes;
    double sum = 0, square = 0;
    for (int from = 0; from < count; from += chunk) {
        xg_mark mark = xg_tape_mark(r->tape);
        xg_scope s = scope_of(r, false);
        xg_tensor *x = xg_leaf(r->tape, picture_shape(r, chunk), NULL);
        xg_real *to = xg_leaf_data(x);
        for (int i = 0; to && i < chunk; i++) fill(r, to + (size_t)i * size, from + i);
        const xg_real *p = xg_data(xg_softmax(r->work->model->net(&s, x)));
        for (int i = 0; i < chunk && !xg_failed(r->tape); i++) {
            double score = p[i * classes + r->label[0]];
            sum += score;
            square += score * score;
        }
        xg_tape_release(r->tape, mark);
    }
    r->norm = sqrt(square);
    return sum / count;
}

/* Ribeiro 2016: cells of the picture kept or zeroed at random. */
static void hide_cells(bench_run *r, xg_real *to, int number)
{
    const bench_model *m = r->work->model;
    const xg_real *keep = r->extra + (size_t)number * BENCH_CELLS * BENCH_CELLS;
    int cell = m->side / BENCH_CELLS, at = 0;
    for (int c = 0; c < m->channels; c++) {
        for (int y = 0; y < m->side; y++) {
            const xg_real *row = keep + y / cell * BENCH_CELLS;
            for (int x = 0; x < m->side; x++, at++) to[at] = r->x[at] * row[x / cell];
        }
    }
}

/* Petsiuk 2018: pixels in the order of their rank; the first half of the pictures has ever more of them,
 * the second half ever fewer. */
static void hide_pixels(bench_run *r, xg_real *to, int number)
{
    const bench_model *m = r->work->model;
    int plane = m->side * m->side, half = INSDEL / 2;
    double bound = plane * (number % half + 0.5) / half;
    for (int i = 0; i < m->channels * plane; i++) {
        bool shown = (r->extra[i % plane] < bound) == (number < half);
        to[i] = shown ? r->x[i] : 0;
    }
}

static double lime(bench_run *r) { return mean_score(r, BENCH_LIME, LIME_CHUNK, hide_cells); }
static double insdel(bench_run *r) { return mean_score(r, INSDEL, INSDEL_CHUNK, hide_pixels); }

/* ---- the list ---------------------------------------------------------------------------------- */

const bench_work bench_works[] = {
    { "r50.inf",       &resnet50, infer,   { 1, 8 },     NULL,          8.2 },
    { "r50.train",     &resnet50, train,   { 1, 8 },     NULL,          24.3 },
    { "r50.guided",    &resnet50, guided,  { 1, 8 },     "r50.train",   48.8 },
    { "r50.gradcam",   &resnet50, gradcam, { 1, 8 },     "r50.train",   24.3 },
    { "r18.inf",       &resnet18, infer,   { 64, 0 },    NULL,          1.1 },
    { "r18.train",     &resnet18, train,   { 64, 0 },    NULL,          3.3 },
    { "r18.guided",    &resnet18, guided,  { 64, 0 },    "r18.train",   6.7 },
    { "small.train",   &small,    train,   { 16, 50 },   NULL,          0.06 },
    { "small.mapkl",   &mapped,   mapkl,   { 16, 50 },   "small.train", 0.11 },
    { "small.gradreg", &small,    gradreg, { 16, 50 },   "small.train", 0.14 },
    { "mlp.train",     &mlp,      train,   { 32, 256 },  NULL,          0.003 },
    { "mlp.gradreg",   &mlp,      gradreg, { 32, 256 },  "mlp.train",   0.007 },
    { "mlp.pgd",       &mlp,      pgd,     { 32, 256 },  "mlp.train",   0.025 },
    { "mlp.ibp",       &mlp,      ibp,     { 32, 256 },  "mlp.train",   0.01 },
    { "r50.intgrad",   &resnet50, intgrad, { IG_CHUNK, 0 },     NULL,   65 },
    { "r18.lime",      &resnet18, lime,    { LIME_CHUNK, 0 },   NULL,   11 },
    { "r50.insdel",    &resnet50, insdel,  { INSDEL_CHUNK, 0 }, NULL,   41 },
};
const int bench_work_count = (int)(sizeof bench_works / sizeof *bench_works);

const bench_work *bench_find(const char *name)
{
    for (int i = 0; i < bench_work_count; i++) {
        if (!strcmp(bench_works[i].name, name)) return &bench_works[i];
    }
    return NULL;
}

/* ---- opening ----------------------------------------------------------------------------------- */

size_t bench_extra_count(const bench_run *r)
{
    const bench_work *w = r->work;
    if (w->turn == lime) return (size_t)BENCH_LIME * BENCH_CELLS * BENCH_CELLS;
    return w->turn == insdel ? (size_t)(w->model->side * w->model->side) : 0;
}

/* Random cells to keep, or a random order of the pixels. */
static void fill_extra(bench_run *r)
{
    size_t count = bench_extra_count(r);
    for (size_t i = 0; i < count; i++) {
        r->extra[i] = r->work->turn == lime ? (xg_real)xg_rng_below(&r->rng, 2) : (xg_real)i;
    }
    for (size_t i = count; r->work->turn == insdel && i > 1; i--) {
        size_t other = (size_t)xg_rng_below(&r->rng, (int)i);
        xg_real rank = r->extra[i - 1];
        r->extra[i - 1] = r->extra[other];
        r->extra[other] = rank;
    }
}

static void fill_inputs(bench_run *r)
{
    const bench_model *m = r->work->model;
    size_t count = xg_shape_size(picture_shape(r, r->batch)), plane = (size_t)(m->side * m->side);
    xg_box box = { 0.25 * m->side, 0.25 * m->side, 0.75 * m->side, 0.75 * m->side };
    for (size_t i = 0; i < count; i++) r->x[i] = (xg_real)xg_rng_normal(&r->rng);
    for (int i = 0; i < r->batch; i++) {
        r->label[i] = xg_rng_below(&r->rng, m->classes);
        xg_mask_box(r->mask + (size_t)i * plane, m->side, m->side, box, m->side, m->side, 0);
    }
    fill_extra(r);
}

/* Every weight is made by a forward pass. The last norm of a residual branch starts small, as is usual
 * (Goyal 2017): through fifty layers that do not, rounding alone changes gradients in the third digit. */
static void make_weights(bench_run *r)
{
    const char *last = r->work->model == &resnet50 ? ".bn3.weight" : ".bn2.weight";
    xg_mark mark = xg_tape_mark(r->tape);
    xg_scope s = scope_of(r, false);
    r->work->model->net(&s, xg_leaf_borrow(r->tape, picture_shape(r, 1), r->x));
    xg_tape_release(r->tape, mark);
    for (int i = 0; i < xg_params_count(r->params); i++) {
        const char *end = strstr(xg_params_name(r->params, i), last);
        size_t count = end && !end[strlen(last)] ? xg_shape_size(xg_params_shape(r->params, i)) : 0;
        for (size_t j = 0; j < count; j++) xg_params_data(r->params, i)[j] = (xg_real)0.25;
    }
}

bool bench_open(bench_run *r, const char *name, int batch, int threads, xg_error *error)
{
    xg_config config;
    memset(r, 0, sizeof *r);
    r->work = bench_find(name);
    if (!r->work) return kit_fail(error, XG_ERR_NAME, "no workload is called %.40s; --list lists them", name);
    if (batch < 1 || batch > 4096 || threads < 1) {
        return kit_fail(error, XG_ERR_ARGUMENT, "needs a batch in [1, 4096] and a thread, not %d and %d",
                        batch, threads);
    }
    r->batch = batch;
    r->rng = xg_rng_seed(7);
    r->optim = (xg_optim){ .kind = XG_SGD, .lr = 1e-4, .momentum = 0.9 };
    r->pool = kit_pool_new(threads, error);
    if (!r->pool) return false;
    memset(&config, 0, sizeof config);
    kit_pool_config(r->pool, &config);
    kit_memory_config(&config);
    r->tape = xg_tape_new(&config);
    r->params = xg_params_new(&config);
    size_t pixels = xg_shape_size(picture_shape(r, batch));
    r->x = calloc(pixels, sizeof *r->x);
    r->mask = calloc(pixels, sizeof *r->mask);
    r->extra = calloc(bench_extra_count(r) + 1, sizeof *r->extra);
    r->label = calloc((size_t)batch, sizeof *r->label);
    if (!r->tape || !r->params || !r->x || !r->mask || !r->extra || !r->label) {
        bench_close(r);
        return kit_fail(error, XG_ERR_MEMORY, "no memory for %s, or XG_SIMD cannot run here", name);
    }
    fill_inputs(r);
    make_weights(r);
    if (!xg_failed(r->tape)) return true;
    kit_fail(error, xg_tape_error(r->tape)->code, "%s", xg_tape_error(r->tape)->text);
    bench_close(r);
    return false;
}

void bench_close(bench_run *r)
{
    xg_tape_free(r->tape);
    xg_params_free(r->params);
    kit_pool_free(r->pool);
    free(r->x);
    free(r->mask);
    free(r->extra);
    free(r->label);
}
