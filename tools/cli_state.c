/* cli_state.c - a run: opening it, its checkpoint, and going on from that.
 *
 * Everything that later steps depend on is in the checkpoint: weights, statistics, the optimiser's
 * state (the library's part), and as notes the step, the places in the shuffled orders, the
 * generators, the sums of the log's unfinished row, and the options. So a run that was stopped
 * at any moment ends with the same bits as one that was not. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MAX_NOTES = CLI_MAX_ARGS + 16 };

bool cli_run_engine(cli_run *run, int threads, xg_error *error)
{
    memset(run, 0, sizeof *run);
    run->pool = kit_pool_new(threads, error);
    if (run->pool == NULL) return false;
    xg_config config;
    memset(&config, 0, sizeof config);
    kit_pool_config(run->pool, &config);
    kit_memory_config(&config);
    run->tape = xg_tape_new(&config);
    run->params = xg_params_new(NULL);
    if (run->tape != NULL && run->params != NULL) return true;
    char levels[128] = "";
    for (int i = 0; i < xg_simd_count(); i++) {
        size_t used = strlen(levels);
        snprintf(levels + used, sizeof levels - used, " %s", xg_simd_name(i));
    }
    if (getenv("XG_SIMD") == NULL) return kit_fail(error, XG_ERR_MEMORY, "no memory for a tape");
    return kit_fail(error, XG_ERR_UNSUPPORTED, "this machine cannot run XG_SIMD=%.20s; it has%s",
                    getenv("XG_SIMD"), levels);
}

/* Which optimiser, with what. */
static xg_optim optim_of(const cli_options *o, int64_t steps)
{
    xg_optim optim;
    memset(&optim, 0, sizeof optim);
    optim.kind = (xg_optim_kind)o->optimiser;
    optim.lr = o->lr;
    optim.momentum = o->optimiser == XG_SGD ? o->momentum : 0;
    optim.weight_decay = o->decay;
    optim.clip_norm = o->clip;
    optim.schedule = o->schedule == 1 ? XG_COSINE : XG_CONSTANT;
    optim.warmup = o->warmup;
    optim.total = (int)steps;
    return optim;
}

/* Orders and buffers of a run whose data is open. */
static bool open_batches(cli_run *run, xg_error *error)
{
    const cli_options *o = &run->o;
    cli_data *data = &run->data;
    int train = data->count[KIT_TRAIN], known = 0, most = o->batch + o->extra;
    int *annotated = (int *)calloc((size_t)train + 1, sizeof *annotated);
    run->picked = (int *)calloc((size_t)most + 1, sizeof *run->picked);
    if (annotated == NULL || run->picked == NULL) {
        free(annotated);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for a list of pictures");
    }
    for (int i = 0; i < train; i++) {
        int index = data->item[KIT_TRAIN][i];
        if (cli_data_annotated(data, KIT_TRAIN, index)) annotated[known++] = index;
    }
    xg_rng shuffle = xg_rng_seed(o->seed ^ 0x0de2u), shuffle_extra = xg_rng_seed(o->seed ^ 0xe72au);
    bool fine = train == 0 || kit_order_new(&run->order, data->item[KIT_TRAIN], train, true,
                                            shuffle, error);
    if (fine && o->loss != CLI_NONE && known == 0) {
        fine = kit_fail(error, XG_ERR_ARGUMENT, "--loss needs pictures with known boxes; %.80s "
                        "has none, or --annotated is too small", o->data);
    }
    if (fine && known > 0) {
        fine = kit_order_new(&run->extra, annotated, known, true, shuffle_extra, error);
    }
    free(annotated);
    run->steps_per_epoch = (train + o->batch - 1) / o->batch;
    run->steps = run->steps_per_epoch * o->epochs;
    if (o->limit > 0 && o->limit < run->steps) run->steps = o->limit;
    run->optim = optim_of(o, run->steps);
    return fine && kit_batch_new(&run->batch, most, data->channels, data->size, data->size, error);
}

static bool check_labels(const cli_run *run, xg_error *error)
{
    if (run->data.classes >= 2) return true;
    return kit_fail(error, XG_ERR_FORMAT, "%.100s has %d classes; training needs at least 2: one "
                    "folder a class, or a metadata.csv as Waterbirds has it", run->o.data,
                    run->data.classes);
}

bool cli_run_open(cli_run *run, const cli_options *o, char said[512], xg_error *error)
{
    if (!cli_run_engine(run, o->threads, error)) return false;
    run->o = *o;
    run->rng = xg_rng_seed(o->seed ^ 0xd20bu);
    cli_net any;                             /* a name that is wrong shows before data is read    */
    if (!cli_net_find(&any, o->net, error)) return false;
    kit_norm norm = o->norm > 0 ? (kit_norm)(o->norm - 1) : any.norm;
    if (!cli_data_open(&run->data, o, norm, error) || !check_labels(run, error)) return false;
    if (!cli_net_from(&run->net, o, run->data.classes, error)) return false;
    xg_shape input = xg_shape4(1, run->data.channels, run->data.size, run->data.size);
    return cli_net_make(&run->net, run->tape, run->params, input, o->seed, o->weights, said, error)
        && cli_net_train_from(run->params, o->train_from, error)
        && open_batches(run, error);
}

void cli_run_close(cli_run *run)
{
    kit_batch_free(&run->batch);
    kit_order_free(&run->order);
    kit_order_free(&run->extra);
    free(run->picked);
    cli_data_free(&run->data);
    xg_tape_free(run->tape);
    xg_params_free(run->params);
    kit_pool_free(run->pool);
    memset(run, 0, sizeof *run);
}

/* ---- checkpoint ------------------------------------------------------------------------------ */

static bool checkpoint_path(const cli_run *run, char out[1024], xg_error *error)
{
    return kit_join(out, 1024, run->o.out, "checkpoint.safetensors", error);
}

static bool put_sums(xg_note *notes, int *count, const cli_sums *s)
{
    return cli_note_add(notes, count, MAX_NOTES, "sums", "%a %a %a %a %lld %lld %lld %lld", s->loss,
                        s->class_loss, s->guide_loss, s->epg, (long long)s->steps,
                        (long long)s->seen, (long long)s->right, (long long)s->guided);
}

static bool get_sums(const char *text, cli_sums *s)
{
    long long steps, seen, right, guided;
    if (sscanf(text, "%la %la %la %la %lld %lld %lld %lld", &s->loss, &s->class_loss,
               &s->guide_loss, &s->epg, &steps, &seen, &right, &guided) != 8) {
        return false;
    }
    s->steps = steps;
    s->seen = seen;
    s->right = right;
    s->guided = guided;
    return true;
}

bool cli_state_save(cli_run *run, const cli_sums *sums, xg_error *error)
{
    xg_note notes[MAX_NOTES];
    char path[1024], order[96] = "", extra[96] = "";
    int count = cli_options_save(&run->o, notes, MAX_NOTES);
    kit_order_save(&run->order, order);
    if (run->extra.count > 0) kit_order_save(&run->extra, extra);
    bool fits = cli_note_add(notes, &count, MAX_NOTES, "step", "%lld", (long long)run->step)
        && cli_note_add(notes, &count, MAX_NOTES, "classes", "%d", run->data.classes)
        && cli_note_add(notes, &count, MAX_NOTES, "order", "%s", order)
        && cli_note_add(notes, &count, MAX_NOTES, "extra", "%s", extra)
        && cli_note_add(notes, &count, MAX_NOTES, "rng", "%llu %llu",
                        (unsigned long long)run->rng.state,
                        (unsigned long long)run->data.rng.state)
        && put_sums(notes, &count, sums);
    if (!fits) {
        return kit_fail(error, XG_ERR_ARGUMENT, "the state of the run is too long for its notes");
    }
    if (!checkpoint_path(run, path, error)) return false;
    if (xg_checkpoint_save(run->params, path, notes, count) == XG_ERR_OK) return true;
    return cli_params_fail(run->params, error);
}

/* The notes' part of going on. */
static bool restore(cli_run *run, cli_sums *sums, const xg_note *notes, int count, xg_error *error)
{
    const char *step = cli_note(notes, count, "step"), *order = cli_note(notes, count, "order");
    const char *extra = cli_note(notes, count, "extra"), *rng = cli_note(notes, count, "rng");
    const char *sum = cli_note(notes, count, "sums");
    long long at = 0;
    unsigned long long first = 0, second = 0;
    if (!step || !order || !extra || !rng || !sum || sscanf(step, "%lld", &at) != 1 || at < 0
        || sscanf(rng, "%llu %llu", &first, &second) != 2 || !get_sums(sum, sums)) {
        return kit_fail(error, XG_ERR_FORMAT, "the checkpoint in %.100s was not made by `xguide "
                        "train`; give another --out, or --fresh to begin anew", run->o.out);
    }
    run->step = at;
    run->rng.state = first;
    run->data.rng.state = second;
    if (!kit_order_restore(&run->order, order, error)) return false;
    return extra[0] == 0 || run->extra.count == 0 || kit_order_restore(&run->extra, extra, error);
}

bool cli_state_resume(cli_run *run, cli_sums *sums, bool *found, xg_error *error)
{
    xg_note notes[MAX_NOTES];
    char path[1024];
    int count = 0;
    *found = false;
    if (!checkpoint_path(run, path, error)) return false;
    if (run->o.fresh) remove(path);          /* or a kill would bring the old run back            */
    if (!kit_is_file(path)) return true;
    if (xg_checkpoint_load(run->params, path, notes, MAX_NOTES, &count) != XG_ERR_OK) {
        const xg_error *why = xg_params_error(run->params);
        return kit_fail(error, why->code, "cannot go on from %.60s: %.120s; --fresh begins anew",
                        run->o.out, why->text);
    }
    if (!cli_options_same(&run->o, notes, count, error)) return false;
    *found = true;
    return restore(run, sums, notes, count, error);
}
