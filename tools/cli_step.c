/* cli_step.c - one training step with guidance, and measuring a split. This is where the library is
 * used: forward, score, map, xg_guide, add, step. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* ---- maps ------------------------------------------------------------------------------------ */

/* Cross-entropy sees only differences of logits. A network can therefore hide what it uses in the
 * logits of the other classes, where no map of the labelled one shows it; the contrast shows it. */
static xg_tensor *score_of(xg_tensor *logits, const int *label, int kind)
{
    xg_shape s = xg_shape_of(logits);
    xg_tensor *own = xg_pick(logits, label);
    if (kind == CLI_LOGIT || s.c < 2) return own;
    xg_tensor *all = xg_sum_to(logits, xg_shape4(s.n, 1, 1, 1));
    double others = 1.0 / (s.c - 1);
    return xg_sub(xg_affine(own, 1 + others, 0), xg_affine(all, others, 0));
}

xg_tensor *cli_map(int attribution, int score_kind, xg_tensor *logits, const int *label,
                   const char *layer)
{
    xg_tensor *score = score_of(logits, label, score_kind);
    xg_tensor *u = xg_find(xg_tape_of(logits), layer);
    switch (attribution) {
    case CLI_GRADIENT: return xg_gradient(score, u);
    case CLI_GRADCAM:  return xg_grad_cam(score, u, NULL);
    case CLI_BCOS:     return xg_bcos_map(score, u);
    default:           return xg_input_x_gradient(score, u);
    }
}

xg_tensor *cli_map_any(xg_scope *s, const cli_options *o, int attribution, xg_tensor *x,
                       xg_tensor *logits, const int *label, const char *layer)
{
    if (attribution != CLI_IG) return cli_map(attribution, o->score, logits, label, layer);
    xg_path_options path = { .steps = o->steps_ig };
    return xg_integrated_gradients(s, cli_net_run, x, label, &path);
}

/* ---- a step ---------------------------------------------------------------------------------- */

/* Indices of the next batch in run->picked, annotated ones first; *extras of them are there for
 * guidance only. Returns how many; the orders move on. */
static int next_indices(cli_run *run, int *extras)
{
    const cli_options *o = &run->o;
    int *picked = run->picked, count = 0;
    *extras = 0;
    while (o->loss != CLI_NONE && o->extra > 0 && *extras < o->extra) {
        int took = kit_order_next(&run->extra, o->extra - *extras, picked + *extras);
        *extras += took;               /* 0 once where an epoch of the annotated ones ends        */
    }
    count = kit_order_next(&run->order, o->batch, picked + *extras);
    if (count == 0) count = kit_order_next(&run->order, o->batch, picked + *extras);
    int *mine = picked + *extras, front = 0;
    for (int i = 0; i < count && o->extra == 0 && o->loss != CLI_NONE; i++) {
        if (!cli_data_annotated(&run->data, KIT_TRAIN, mine[i])) continue;
        int swap = mine[front];
        mine[front++] = mine[i];
        mine[i] = swap;
    }
    return *extras + count;
}

/* Rows [from, to) of the batch as a leaf of pictures. */
static xg_tensor *pictures(cli_run *run, int from, int to)
{
    const kit_batch *b = &run->batch;
    size_t sample = (size_t)b->channels * (size_t)b->h * (size_t)b->w;
    return xg_leaf_borrow(run->tape, xg_shape4(to - from, b->channels, b->h, b->w),
                          b->pixels + (size_t)from * sample);
}

/* A forward pass over rows [from, to). */
static xg_tensor *forward(cli_run *run, xg_scope *scope, int from, int to, xg_tensor **x)
{
    *x = pictures(run, from, to);
    return cli_net_run(scope, *x);
}

static xg_tensor *label_loss(cli_run *run, xg_tensor *logits, const int *label)
{
    const double *weight = run->o.balance ? run->data.class_weight : NULL;
    if (run->o.objective == CLI_CROSS_ENTROPY) return xg_cross_entropy(logits, label, weight);
    xg_shape s = xg_shape_of(logits);
    return xg_bce_with_logits(logits, xg_one_hot(run->tape, label, s.n, s.c));
}

static int count_right(xg_tensor *logits, const int *label)
{
    xg_shape s = xg_shape_of(logits);
    return (int)floor(xg_accuracy(xg_data(logits), label, s.n, s.c) * s.n + 0.5);
}

/* Sum of EPG over the first `count` maps against masks of another size. */
static double epg_sum(xg_tensor *map, const kit_batch *batch, int count)
{
    xg_shape s = xg_shape_of(map);
    if (s.h != batch->h || s.w != batch->w) map = xg_upsample(map, batch->h, batch->w);
    const xg_real *value = xg_data(map);
    if (xg_failed(xg_tape_of(map))) return (double)NAN;
    double sum = 0;
    size_t plane = (size_t)batch->h * (size_t)batch->w;
    for (int i = 0; i < count; i++) {
        if (!(batch->weight[i] > 0)) continue;
        sum += xg_epg(value + (size_t)i * plane, batch->masks + (size_t)i * plane, plane);
    }
    return sum;
}

/* The loss on a map against the masks of the first n rows. All losses but RRR look only at what
 * speaks for the label; with --against, what speaks against it should lie in the mask too. */
static xg_tensor *guide_loss(cli_run *run, xg_tensor *map, int n)
{
    static const xg_loss losses[] = {
        XG_LOSS_ENERGY, XG_LOSS_ENERGY, XG_LOSS_L1, XG_LOSS_PPCE, XG_LOSS_RRR
    };
    const kit_batch *b = &run->batch;
    xg_guide_options guide;
    memset(&guide, 0, sizeof guide);
    guide.loss = losses[run->o.loss];
    guide.weight = b->weight;
    guide.mean = run->o.mean;
    xg_tensor *mask = xg_leaf_borrow(run->tape, xg_shape4(n, 1, b->h, b->w), b->masks);
    xg_tensor *speaks_for = xg_guide(map, mask, &guide);
    if (!run->o.against) return speaks_for;
    xg_tensor *speaks_against = xg_guide(xg_neg(map), mask, &guide);
    return xg_affine(xg_add(speaks_for, speaks_against), 0.5, 0);
}

/* Integrated gradients are not on the tape: their part of the gradient comes from a second pass
 * over the path, and is added to that of the label loss. */
static xg_code step_along_path(cli_run *run, xg_scope *scope, const xg_optim *optim,
                               xg_tensor *loss, xg_tensor *map, xg_tensor *guide, xg_tensor *x)
{
    int max = xg_params_count(run->params);
    xg_tensor **leaf = (xg_tensor **)calloc(3 * (size_t)max + 1, sizeof *leaf);
    if (leaf == NULL) {
        xg_fail(run->tape, XG_ERR_MEMORY, "out of memory for a list of gradients");
        return XG_ERR_MEMORY;
    }
    xg_tensor **grad = leaf + max, **path = grad + max;
    int count = xg_params_leaves(run->params, run->tape, leaf, max);
    xg_path_options options = { .steps = run->o.steps_ig };
    xg_tensor *cotangent = xg_grad(guide, map);
    xg_grads(loss, NULL, leaf, count, NULL, grad);
    xg_integrated_gradients_vjp(scope, cli_net_run, x, run->batch.label, &options, cotangent, leaf,
                                count, path);
    for (int i = 0; i < count; i++) grad[i] = xg_add(grad[i], path[i]);
    xg_code code = xg_optim_apply(optim, run->params, leaf, grad, count);
    free(leaf);
    return code;
}

/* A step on the batch. Rows [0, guided) may be explained; rows from `extras` on are learnt from.
 *
 * Without batch norm, samples do not see each other: the guided rows then make a pass of their own,
 * and only that pass is differentiated twice. With batch norm there is one pass over all. */
static xg_code learn(cli_run *run, int count, int guided, int extras, cli_sums *sums)
{
    xg_tape *tape = run->tape;
    const kit_batch *b = &run->batch;
    xg_scope scope = xg_scope_new(tape, run->params, &run->rng, true);
    scope.user = &run->net;
    int first = guided > 0 && !run->net.coupled ? guided : guided > 0 ? count : 0;

    xg_tensor *x = NULL, *map = NULL, *guide = NULL, *logits = NULL, *others;
    if (first > 0) {
        logits = forward(run, &scope, 0, first, &x);
        map = cli_map_any(&scope, &run->o, run->o.attribution, x, logits, b->label, run->o.layer);
        guide = xg_affine(guide_loss(run, map, first), run->o.lambda, 0);
    }
    if (first < count) {
        xg_tensor *rest = forward(run, &scope, first, count, &others);
        logits = logits ? xg_concat(logits, rest, 0) : rest;
    }
    if (extras > 0) {
        xg_shape s = xg_shape_of(logits);
        logits = xg_slice(logits, xg_shape4(extras, 0, 0, 0), xg_shape4(count - extras, s.c, 1, 1));
    }
    xg_tensor *loss = label_loss(run, logits, b->label + extras);
    xg_tensor *total = guide && run->o.attribution != CLI_IG ? xg_add(loss, guide) : loss;

    xg_optim optim = run->optim;
    if (run->step < run->o.head_first) optim.only = run->net.head;
    xg_code code = guide && total == loss
                 ? step_along_path(run, &scope, &optim, loss, map, guide, x)
                 : xg_optim_step(&optim, run->params, total);
    if (code != XG_ERR_OK) return code;
    sums->class_loss += xg_item(loss);
    sums->guide_loss += guide ? xg_item(guide) : 0;
    sums->loss += xg_item(loss) + (guide ? xg_item(guide) : 0);
    sums->right += count_right(logits, b->label + extras);
    sums->seen += count - extras;
    sums->steps++;
    if (guide) {
        sums->epg += epg_sum(map, b, first);
        sums->guided += guided;
    }
    return XG_ERR_OK;
}

bool cli_step(cli_run *run, cli_sums *sums, xg_error *error)
{
    int extras = 0, guided = 0, count = next_indices(run, &extras);
    if (!cli_data_batch(&run->data, &run->batch, KIT_TRAIN, run->picked, count, true, run->pool,
                        error)) {
        return false;
    }
    for (int i = 0; i < count && run->o.loss != CLI_NONE; i++) {
        if (run->o.extra > 0 && i >= extras) run->batch.weight[i] = 0;
        if (run->batch.weight[i] > 0) guided++;
    }
    xg_mark mark = xg_tape_mark(run->tape);
    xg_code code = learn(run, count, guided, extras, sums);
    bool fine = (code == XG_ERR_OK && !xg_failed(run->tape)) || cli_tape_fail(run->tape, error);
    xg_tape_release(run->tape, mark);
    if (fine) run->step++;
    return fine;
}

/* ---- measuring ------------------------------------------------------------------------------- */

/* What one batch adds. */
typedef struct measure { double epg_layer, epg_input; int64_t boxes; } measure;

static void measure_maps(cli_run *run, xg_scope *scope, xg_tensor *x, xg_tensor *logits, int count,
                         measure *m)
{
    const cli_options *o = &run->o;
    const kit_batch *b = &run->batch;
    int at_input = o->attribution == CLI_GRADCAM ? CLI_IXG : o->attribution;
    xg_tensor *layer = cli_map_any(scope, o, o->attribution, x, logits, b->label, o->layer);
    bool same = at_input == o->attribution && strcmp(o->layer, "input") == 0;
    xg_tensor *input = same ? layer : cli_map_any(scope, o, at_input, x, logits, b->label, "input");
    m->epg_layer += epg_sum(layer, b, count);
    m->epg_input += epg_sum(input, b, count);
    for (int i = 0; i < count; i++) m->boxes += b->weight[i] > 0;
}

static bool measure_batch(cli_run *run, kit_split split, const int *index, int count, bool maps,
                          xg_groups *groups, measure *m, xg_error *error)
{
    kit_batch *b = &run->batch;
    if (!cli_data_batch(&run->data, b, split, index, count, false, run->pool, error)) return false;
    xg_mark mark = xg_tape_mark(run->tape);
    xg_scope scope = xg_scope_new(run->tape, run->params, &run->rng, false);
    scope.user = &run->net;
    xg_tensor *x = NULL, *logits = forward(run, &scope, 0, count, &x);
    xg_tensor *best = xg_argmax(logits);
    const xg_real *said = xg_data(best);
    bool fine = !xg_failed(run->tape);
    for (int i = 0; i < count && fine; i++) {
        int group = groups->count > 1 ? b->group[i] : 0;
        xg_groups_add(groups, group, (int)said[i] == b->label[i]);
    }
    if (fine && maps) measure_maps(run, &scope, x, logits, count, m);
    fine = (fine && !xg_failed(run->tape)) || cli_tape_fail(run->tape, error);
    xg_tape_release(run->tape, mark);
    return fine;
}

bool cli_measure(cli_run *run, kit_split split, int limit, bool maps, cli_scores *out,
                 xg_error *error)
{
    double started = kit_seconds();
    int all = run->data.count[split], count = limit > 0 && limit < all ? limit : all;
    measure m = { 0, 0, 0 };
    memset(out, 0, sizeof *out);
    out->groups.count = run->data.groups <= 64 ? run->data.groups : 1;     /* more: all in one    */
    for (int done = 0; done < count;) {
        if (kit_interrupted()) return false;
        int n = count - done < run->o.batch ? count - done : run->o.batch;
        for (int i = 0; i < n; i++) {        /* evenly over the split, which is sorted by class   */
            run->picked[i] = run->data.item[split][(int64_t)(done + i) * all / count];
        }
        if (!measure_batch(run, split, run->picked, n, maps, &out->groups, &m, error)) return false;
        done += n;
    }
    out->epg_layer = m.boxes > 0 ? m.epg_layer / (double)m.boxes : (double)NAN;
    out->epg_input = m.boxes > 0 ? m.epg_input / (double)m.boxes : (double)NAN;
    out->seconds = kit_seconds() - started;
    return true;
}
