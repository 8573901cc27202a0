/* kit_batch.c - K5: which samples come next, and how they become the numbers of a batch. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

/* ------------------------------------------------------------------------------------- order -- */

/* Deals the epoch that begins with the generator's present state. */
static void begin_epoch(kit_order *order)
{
    order->start = order->rng;
    order->at = 0;
    memcpy(order->turn, order->item, (size_t)order->count * sizeof *order->turn);
    if (order->shuffle) xg_rng_shuffle(&order->rng, order->turn, order->count);
}

bool kit_order_new(kit_order *order, const int *items, int count, bool shuffle, xg_rng rng,
                   xg_error *error)
{
    memset(order, 0, sizeof *order);
    if (count < 1) return kit_fail(error, XG_ERR_ARGUMENT, "there are no samples to go through");
    order->item = (int *)malloc((size_t)count * sizeof(int));
    order->turn = (int *)malloc((size_t)count * sizeof(int));
    if (order->item == NULL || order->turn == NULL) {
        kit_order_free(order);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for the order of %d samples", count);
    }
    for (int i = 0; i < count; i++) order->item[i] = items != NULL ? items[i] : i;
    order->count = count;
    order->shuffle = shuffle;
    order->rng = rng;
    begin_epoch(order);
    return true;
}

void kit_order_free(kit_order *order)
{
    free(order->item);
    free(order->turn);
    memset(order, 0, sizeof *order);
}

/* Between epochs it says 0 once, so that a loop over an epoch is `while ((n = next(...)) > 0)`. */
int kit_order_next(kit_order *order, int batch, int *out)
{
    if (order->at >= order->count) {
        order->epoch++;
        begin_epoch(order);
        return 0;
    }
    int left = order->count - order->at, taken = batch < left ? batch : left;
    if (taken < 1) return 0;
    memcpy(out, order->turn + order->at, (size_t)taken * sizeof *out);
    order->at += taken;
    return taken;
}

void kit_order_save(const kit_order *order, char out[96])
{
    snprintf(out, 96, "%d samples, epoch %d, at %d, state %" PRIu64, order->count, order->epoch,
             order->at, order->start.state);
}

/* The saved state is that before the shuffle: dealing the epoch again gives the same order. */
bool kit_order_restore(kit_order *order, const char *text, xg_error *error)
{
    int count = 0, epoch = 0, at = 0;
    uint64_t state = 0;
    int found = sscanf(text, "%d samples, epoch %d, at %d, state %" SCNu64, &count, &epoch, &at,
                       &state);
    if (found != 4 || epoch < 0 || at < 0 || at > count) {
        return kit_fail(error, XG_ERR_FORMAT, "'%.60s' does not say where a training stood", text);
    }
    if (count != order->count) {
        return kit_fail(error, XG_ERR_ARGUMENT, "the training stopped with %d samples, but there "
                        "are %d now: use the same data", count, order->count);
    }
    order->rng.state = state;
    begin_epoch(order);
    order->epoch = epoch;
    order->at = at;
    return true;
}

/* ----------------------------------------------------------------------------------- batches -- */

bool kit_norm_find(const char *name, kit_norm *out, xg_error *error)
{
    static const char *const known[] = { "unit", "imagenet", "caffe", "signed" };
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, known[i]) == 0) {
            *out = (kit_norm)i;
            return true;
        }
    }
    return kit_fail(error, XG_ERR_NAME, "no normalisation is called '%.40s'; there are unit, "
                    "imagenet, caffe, signed", name);
}

bool kit_batch_new(kit_batch *batch, int capacity, int channels, int h, int w, xg_error *error)
{
    memset(batch, 0, sizeof *batch);
    if (capacity < 1 || channels < 1 || h < 1 || w < 1 || capacity > 65536 || channels > 64
        || h > 4096 || w > 4096) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a batch of %d samples of %d x %d x %d is empty or "
                        "too large", capacity, channels, h, w);
    }
    size_t n = (size_t)capacity, plane = (size_t)h * (size_t)w;
    batch->capacity = capacity;
    batch->channels = channels;
    batch->h = h;
    batch->w = w;
    batch->pixels = (xg_real *)calloc(n * plane * (size_t)channels, sizeof(xg_real));
    batch->masks  = (xg_real *)calloc(n * plane, sizeof(xg_real));
    batch->weight = (xg_real *)calloc(n, sizeof(xg_real));
    batch->label  = (int *)calloc(n, sizeof(int));
    batch->group  = (int *)calloc(n, sizeof(int));
    batch->index  = (int *)calloc(n, sizeof(int));
    if (batch->pixels == NULL || batch->masks == NULL || batch->weight == NULL
        || batch->label == NULL || batch->group == NULL || batch->index == NULL) {
        kit_batch_free(batch);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for a batch; make it smaller");
    }
    return true;
}

void kit_batch_free(kit_batch *batch)
{
    free(batch->pixels);
    free(batch->masks);
    free(batch->weight);
    free(batch->label);
    free(batch->group);
    free(batch->index);
    memset(batch, 0, sizeof *batch);
}

/* What both kinds of source check before a byte is moved. */
static bool fits(const kit_batch *batch, const int *index, int count, int channels, int h, int w,
                 int samples, xg_error *error)
{
    if (count < 0 || count > batch->capacity) {
        return kit_fail(error, XG_ERR_ARGUMENT, "%d samples do not fit into a batch of %d", count,
                        batch->capacity);
    }
    if (channels != batch->channels || h != batch->h || w != batch->w) {
        return kit_fail(error, XG_ERR_ARGUMENT, "the batch holds pictures of %d x %d x %d, not of "
                        "%d x %d x %d", batch->channels, batch->h, batch->w, channels, h, w);
    }
    for (int i = 0; i < count; i++) {
        if (index[i] < 0 || index[i] >= samples) {
            return kit_fail(error, XG_ERR_ARGUMENT, "there is no sample %d among %d", index[i],
                            samples);
        }
    }
    return true;
}

bool kit_batch_from_set(kit_batch *batch, const kit_set *set, const int *index, int count,
                        xg_error *error)
{
    if (!fits(batch, index, count, set->channels, set->h, set->w, set->count, error)) return false;
    size_t plane = (size_t)set->h * (size_t)set->w, size = plane * (size_t)set->channels;
    for (int i = 0; i < count; i++) {
        size_t from = (size_t)index[i], to = (size_t)i;
        memcpy(batch->pixels + to * size, set->pixels + from * size, size * sizeof(xg_real));
        memcpy(batch->masks + to * plane, set->masks + from * plane, plane * sizeof(xg_real));
        batch->weight[i] = set->annotated[from] ? 1 : 0;
        batch->label[i] = set->label[from];
        batch->group[i] = set->group[from];
        batch->index[i] = index[i];
    }
    batch->count = count;
    return true;
}

/* ------------------------------------------------------------------------------- photographs -- */

/* What the samples of a batch have in common while they are made, each on any thread. */
typedef struct making {
    kit_batch      *batch;
    const kit_photos *photos;
    kit_view        view;
    const uint64_t *seed;      /* [count] one a sample: the order of work does not matter  */
    kit_picture    *fresh;     /* [count] what had to be decoded                                  */
    int            *source;    /* [count][2] extents of the file's picture                        */
    xg_error       *error;     /* [count]                                                         */
} making;

/* What part of the picture is shown, in [0,1], and whether it is mirrored. */
typedef struct cut { double x, y, size; bool mirrored; } cut;

/* Area, then place, then mirror; all from the sample's own seed. */
static cut choose_cut(const kit_view *view, uint64_t seed)
{
    cut    c = { 0, 0, 1, false };
    xg_rng rng = xg_rng_seed(seed);
    if (view->crop > 0) {
        c.size = sqrt(view->crop + (1 - view->crop) * xg_rng_uniform(&rng));
        c.x = (1 - c.size) * xg_rng_uniform(&rng);
        c.y = (1 - c.size) * xg_rng_uniform(&rng);
    }
    if (view->flip) c.mirrored = xg_rng_below(&rng, 2) == 1;
    return c;
}

/* The part of a square picture at its full size again: bilinear. */
static void apply_cut(const unsigned char *rgb, int size, cut c, unsigned char *out)
{
    for (int y = 0; y < size; y++) {
        double sy = fmin(fmax((c.y + c.size * (y + 0.5) / size) * size - 0.5, 0), size - 1);
        int y0 = (int)sy, y1 = y0 + 1 < size ? y0 + 1 : y0;
        for (int x = 0; x < size; x++) {
            double at = (c.mirrored ? size - x - 0.5 : x + 0.5) / size;
            double sx = fmin(fmax((c.x + c.size * at) * size - 0.5, 0), size - 1);
            int x0 = (int)sx, x1 = x0 + 1 < size ? x0 + 1 : x0;
            double tx = sx - x0, ty = sy - y0;
            for (int k = 0; k < 3; k++) {
                double top = (1 - tx) * rgb[3 * (y0 * size + x0) + k]
                           + tx * rgb[3 * (y0 * size + x1) + k];
                double low = (1 - tx) * rgb[3 * (y1 * size + x0) + k]
                           + tx * rgb[3 * (y1 * size + x1) + k];
                *out++ = (unsigned char)((1 - ty) * top + ty * low + 0.5);
            }
        }
    }
}

/* The union of the boxes as the cut shows them. */
static void draw_mask(const making *m, const kit_photo *photo, const int source[2], cut c,
                      xg_real *mask)
{
    int    size = m->photos->size;
    size_t plane = (size_t)size * (size_t)size;
    double w = source[0], h = source[1];
    memset(mask, 0, plane * sizeof *mask);
    for (int i = 0; i < photo->boxes; i++) {
        xg_box b = m->photos->box[photo->first_box + i];
        if (c.mirrored) {
            double left = (2 * c.x + c.size) * w - b.x1;     /* about the middle of the cut */
            b.x1 = (2 * c.x + c.size) * w - b.x0;
            b.x0 = left;
        }
        xg_box seen = { b.x0 - c.x * w, b.y0 - c.y * h, b.x1 - c.x * w, b.y1 - c.y * h };
        xg_mask_box(mask, size, size, seen, c.size * w, c.size * h, m->view.dilation);
    }
    if (!m->view.outside || photo->boxes == 0) return;
    for (size_t i = 0; i < plane; i++) mask[i] = 1 - mask[i];
}

/* Finds the sample's bytes: kept from before, or decoded now into m->fresh. */
static const unsigned char *bytes_of(making *m, int i, const kit_photo *photo)
{
    m->source[2 * i] = photo->w;
    m->source[2 * i + 1] = photo->h;
    if (photo->pixels != NULL) return photo->pixels;
    kit_picture whole;
    if (!kit_picture_load(&whole, photo->path, &m->error[i])) return NULL;
    m->source[2 * i] = whole.w;
    m->source[2 * i + 1] = whole.h;
    bool fine = kit_picture_resize(&whole, m->photos->size, m->photos->size, &m->fresh[i],
                                   &m->error[i]);
    kit_picture_free(&whole);
    return fine ? m->fresh[i].rgb : NULL;
}

/* The task of one thread: it writes to row i of the batch, and to its own entries, only. */
static void make_sample(void *context, int i, int worker)
{
    making *m = (making *)context;
    kit_batch *batch = m->batch;
    const kit_photo *photo = &m->photos->photo[batch->index[i]];
    int    size = m->photos->size;
    size_t plane = (size_t)size * (size_t)size;
    (void)worker;
    const unsigned char *rgb = bytes_of(m, i, photo);
    if (rgb == NULL) return;
    cut c = choose_cut(&m->view, m->seed[i]);
    unsigned char *shown = NULL;
    if (c.mirrored || c.size < 1) {
        shown = (unsigned char *)malloc(3 * plane);
        if (shown == NULL) {
            kit_fail(&m->error[i], XG_ERR_MEMORY, "out of memory for a photograph");
            return;
        }
        apply_cut(rgb, size, c, shown);
    }
    kit_picture_normalise(shown != NULL ? shown : rgb, size, size, m->view.norm,
                          batch->pixels + (size_t)i * 3 * plane);
    free(shown);
    draw_mask(m, photo, m->source + 2 * i, c, batch->masks + (size_t)i * plane);
    bool may_see = m->view.all_boxes ? photo->boxes > 0 : photo->annotated;
    batch->weight[i] = may_see ? 1 : 0;
    batch->label[i] = photo->label;
    batch->group[i] = photo->group;
}

/* Keeps what was decoded while there is room; the rest is decoded again next time. */
static void keep(kit_photos *photos, const making *m, int count)
{
    size_t bytes = 3 * (size_t)photos->size * (size_t)photos->size;
    for (int i = 0; i < count; i++) {
        kit_photo *photo = &photos->photo[m->batch->index[i]];
        if (m->fresh[i].rgb == NULL) continue;
        photo->w = m->source[2 * i];
        photo->h = m->source[2 * i + 1];
        if (photo->pixels == NULL && photos->kept_bytes + bytes <= photos->keep_bytes) {
            photo->pixels = m->fresh[i].rgb;
            photos->kept_bytes += bytes;
            memset(&m->fresh[i], 0, sizeof m->fresh[i]);
        }
        kit_picture_free(&m->fresh[i]);
    }
}

/* Seeds are drawn here, in order, before the work is handed out: the batch is the same for any
 * number of threads. Errors are collected by sample; the first in order is the one reported. */
bool kit_batch_from_photos(kit_batch *batch, kit_photos *photos, const int *index, int count,
                           const kit_view *view, xg_rng *rng, kit_pool *pool, xg_error *error)
{
    int size = photos->size;
    if (!fits(batch, index, count, 3, size, size, photos->count, error)) return false;
    making m;
    memset(&m, 0, sizeof m);
    if (view != NULL) m.view = *view;
    if (rng == NULL) {
        m.view.flip = false;
        m.view.crop = 0;
    }
    if (!(m.view.crop >= 0 && m.view.crop <= 1) || !(m.view.dilation >= 0)) {
        return kit_fail(error, XG_ERR_ARGUMENT, "crop should be in [0,1], dilation not negative");
    }
    size_t n = (size_t)count + 1;
    uint64_t *seed = (uint64_t *)calloc(n, sizeof *seed);
    m.batch = batch;
    m.photos = photos;
    m.seed = seed;
    m.fresh = (kit_picture *)calloc(n, sizeof *m.fresh);
    m.source = (int *)calloc(2 * n, sizeof *m.source);
    m.error = (xg_error *)calloc(n, sizeof *m.error);
    bool fine = seed != NULL && m.fresh != NULL && m.source != NULL && m.error != NULL;
    if (!fine) kit_fail(error, XG_ERR_MEMORY, "out of memory for a batch");
    if (fine) {
        for (int i = 0; i < count; i++) {
            batch->index[i] = index[i];
            seed[i] = rng != NULL ? xg_rng_next(rng) : 0;
        }
        batch->count = count;
        kit_pool_run(pool, count, make_sample, &m);
        keep(photos, &m, count);
        for (int i = 0; i < count && fine; i++) {
            fine = m.error[i].code == XG_ERR_OK
                || kit_fail(error, m.error[i].code, "%s", m.error[i].text);
        }
        if (!fine) batch->count = 0;
    }
    free(seed);
    free(m.fresh);
    free(m.source);
    free(m.error);
    return fine;
}

/* -------------------------------------------------------------------------- splits and boxes -- */

int kit_photos_split(const kit_photos *photos, kit_split split, int *out)
{
    int count = 0;
    for (int i = 0; i < photos->count; i++) {
        if (photos->photo[i].split != split) continue;
        if (out != NULL) out[count] = i;
        count++;
    }
    return count;
}

bool kit_photos_annotate(kit_photos *photos, double fraction, uint64_t seed, xg_error *error)
{
    int   count = kit_photos_split(photos, KIT_TRAIN, NULL);
    int  *index = (int *)malloc(((size_t)count + 1) * sizeof *index);
    bool *chosen = (bool *)calloc((size_t)count + 1, sizeof *chosen);
    bool  fine = index != NULL && chosen != NULL;
    if (fine) {
        kit_photos_split(photos, KIT_TRAIN, index);
        kit_annotate(chosen, count, fraction, seed);
        for (int i = 0; i < count; i++) {
            kit_photo *photo = &photos->photo[index[i]];
            photo->annotated = chosen[i] && photo->boxes > 0;
        }
    }
    free(index);
    free(chosen);
    return fine || kit_fail(error, XG_ERR_MEMORY, "out of memory for choosing annotations");
}
