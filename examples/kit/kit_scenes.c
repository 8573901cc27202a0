/* kit_scenes.c - K3: sets of pictures, and the black-and-white scenes of "Machine Learning from Explanations".
 * A shape is a test "is this point inside?"; a pixel belongs to it when its centre does, so that
 * pictures and masks are exact and agree. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

/* -------------------------------------------------------------------------------------- sets -- */

/* All zero at first. The limit keeps a mistyped size from taking the whole machine. */
bool kit_set_new(kit_set *set, int count, int channels, int h, int w, xg_error *error)
{
    memset(set, 0, sizeof *set);
    if (count < 1 || channels < 1 || h < 1 || w < 1 || h > 4096 || w > 4096 || channels > 64
        || (size_t)count > ((size_t)1 << 34) / ((size_t)channels * (size_t)h * (size_t)w)) {
        return kit_fail(error, XG_ERR_ARGUMENT,
                        "a set of %d pictures of %d x %d x %d is empty or too large", count,
                        channels, h, w);
    }
    size_t n = (size_t)count, plane = (size_t)h * (size_t)w;
    set->count = count;
    set->channels = channels;
    set->h = h;
    set->w = w;
    set->pixels    = (xg_real *)calloc(n * plane * (size_t)channels, sizeof(xg_real));
    set->masks     = (xg_real *)calloc(n * plane, sizeof(xg_real));
    set->label     = (int *)calloc(n, sizeof(int));
    set->group     = (int *)calloc(n, sizeof(int));
    set->box       = (xg_box *)calloc(n, sizeof(xg_box));
    set->annotated = (bool *)calloc(n, sizeof(bool));
    if (set->pixels == NULL || set->masks == NULL || set->label == NULL || set->group == NULL
        || set->box == NULL || set->annotated == NULL) {
        kit_set_free(set);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for %d pictures of %d x %d", count, w,
                        h);
    }
    for (int i = 0; i < count; i++) set->annotated[i] = true;
    return true;
}

void kit_set_free(kit_set *set)
{
    free(set->pixels);
    free(set->masks);
    free(set->label);
    free(set->group);
    free(set->box);
    free(set->annotated);
    memset(set, 0, sizeof *set);
}

xg_box kit_mask_bounds(const xg_real *mask, int h, int w)
{
    int x0 = w, y0 = h, x1 = 0, y1 = 0;
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++) {
            if (mask[(size_t)y * (size_t)w + (size_t)x] <= 0) continue;
            if (x < x0) x0 = x;
            if (x >= x1) x1 = x + 1;
            if (y < y0) y0 = y;
            if (y >= y1) y1 = y + 1;
        }
    }
    xg_box box = { 0, 0, 0, 0 };
    if (x1 > x0) {
        box.x0 = x0;
        box.y0 = y0;
        box.x1 = x1;
        box.y1 = y1;
    }
    return box;
}

void kit_annotate(bool *annotated, int count, double fraction, uint64_t seed)
{
    xg_rng rng = xg_rng_seed(seed);
    int wanted = fraction >= 1 ? count : fraction > 0 ? (int)(fraction * count) : 0;
    for (int i = 0; i < count; i++) {
        /* Selection sampling: each of what is left is taken with equal chance, in one pass. */
        bool take = xg_rng_below(&rng, count - i) < wanted;
        annotated[i] = take;
        if (take) wanted--;
    }
}

/* ------------------------------------------------------------------------------------ shapes -- */

typedef enum part_kind { PART_BAR, PART_DISC, PART_UP, PART_DOWN } part_kind;

/* A bar, disc or triangle by its middle and half extents, cut to |x - cx| <= slice. */
typedef struct part { part_kind kind; double cx, cy, rx, ry, slice; } part;

/* What is drawn: parts of a figure and its mask, all turned about one point. */
typedef struct figure {
    part   shape[2];
    int    shapes;
    part   mask;
    double cx, cy, sine, cosine;
} figure;

static part make_part(part_kind kind, double cx, double cy, double rx, double ry)
{
    part p = { kind, cx, cy, rx, ry, rx };
    return p;
}

static bool part_covers(const part *p, double x, double y)
{
    double u = (x - p->cx) / p->rx, v = (y - p->cy) / p->ry;
    if (fabs(x - p->cx) > p->slice || fabs(v) > 1) return false;
    switch (p->kind) {
    case PART_DISC: return u * u + v * v <= 1;
    case PART_UP:   return fabs(u) <= (1 + v) / 2;      /* nothing at the top, all at the base */
    case PART_DOWN: return fabs(u) <= (1 - v) / 2;
    case PART_BAR:  break;
    }
    return true;
}

/* Turns the centre of pixel (x,y) back into the figure's own upright frame. */
static void unturn(const figure *f, int x, int y, double *ux, double *uy)
{
    double dx = x + 0.5 - f->cx, dy = y + 0.5 - f->cy;
    *ux = f->cx + f->cosine * dx + f->sine * dy;
    *uy = f->cy - f->sine * dx + f->cosine * dy;
}

/* ----------------------------------------------------------------------------------- options -- */

/* Zero in an option means its default. */
static void or_int(int *value, int standard)          { if (*value == 0) *value = standard; }
static void or_double(double *value, double standard) { if (!(*value != 0)) *value = standard; }

/* A range of which only one end was given moves the other out of its way. */
static void or_range(int *low, int *high, int standard_low, int standard_high)
{
    or_int(low, *high != 0 && *high < standard_low ? *high : standard_low);
    or_int(high, *low > standard_high ? *low : standard_high);
}

static kit_shape_options resolved(const kit_shape_options *options)
{
    kit_shape_options o;
    memset(&o, 0, sizeof o);
    if (options != NULL) o = *options;
    or_int(&o.size, 64);
    or_double(&o.foreground, 1);
    or_range(&o.half_min, &o.half_max, 8, 20);
    or_range(&o.height_min, &o.height_max, 8, 20);
    or_double(&o.slice, 0.5);
    or_range(&o.head_min, &o.head_max, 12, 20);
    or_range(&o.body_min, &o.body_max, 16, 24);
    or_int(&o.margin, 2);
    or_double(&o.positive, 0.5);
    or_int(&o.bar, 6);
    or_int(&o.patch, 8);
    or_int(&o.square, 4);
    or_double(&o.square_level, 0.5);
    return o;
}

static bool is_triangle(kit_shapes kind) { return kind == KIT_TRIANGLE || kind == KIT_PENTAGON; }

/* Extents of the upright figure; turned, it lies in a circle of its diagonal. */
static void extents(const kit_shape_options *o, int width, int height, int *ew, int *eh)
{
    int diagonal = (int)ceil(sqrt((double)width * width + (double)height * height));
    *ew = o->rotation > 0 ? diagonal : width;
    *eh = o->rotation > 0 ? diagonal : height;
}

/* Checked once for the largest figure, so that drawing cannot fail half-way through a set. */
static bool check(const kit_shape_options *o, xg_error *error)
{
    if (o->size < 8 || o->size > 1024 || o->half_min < 1 || o->half_max < o->half_min
        || o->height_min < 1 || o->height_max < o->height_min || o->head_min < 1
        || o->head_max < o->head_min || o->body_min < 1 || o->body_max < o->body_min
        || o->head_shift < 0 || o->margin < 0 || o->outline < 0 || o->bar < 1 || o->patch < 1
        || o->square < 1 || o->square > o->size || !(o->noise >= 0) || !(o->rotation >= 0)
        || !(o->slice > 0 && o->slice <= 1) || !(o->positive >= 0 && o->positive <= 1)) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a scene option is out of range: sizes must be "
                        "positive and ordered, fractions in [0,1]");
    }
    int ew, eh, body_width = o->body_max > o->head_max + 2 * o->head_shift
                           ? o->body_max : o->head_max + 2 * o->head_shift;
    if (is_triangle(o->kind)) extents(o, 2 * o->half_max, o->height_max, &ew, &eh);
    else                      extents(o, body_width, o->body_max + o->head_max, &ew, &eh);
    if (ew + 2 * o->margin > o->size || eh + 2 * o->margin > o->size) {
        return kit_fail(error, XG_ERR_ARGUMENT, "shapes of up to %d x %d with a margin of %d do "
                        "not fit into %d x %d; make them smaller or the picture larger", ew, eh,
                        o->margin, o->size, o->size);
    }
    return true;
}

/* ----------------------------------------------------------------------------------- drawing -- */

/* A whole number from low to high, both included. */
static int between(xg_rng *rng, int low, int high)
{
    return low + xg_rng_below(rng, high - low + 1);
}

/* Puts a figure of the given upright extents somewhere: its left and top edges. */
static void place(const kit_shape_options *o, xg_rng *rng, int width, int height, figure *f,
                  double *left, double *top)
{
    int ew, eh;
    extents(o, width, height, &ew, &eh);
    *left = between(rng, o->margin, o->size - o->margin - ew) + 0.5 * (ew - width);
    *top  = between(rng, o->margin, o->size - o->margin - eh) + 0.5 * (eh - height);
    double angle = o->rotation * (2 * xg_rng_uniform(rng) - 1) * 3.14159265358979323846 / 180;
    f->cx = *left + 0.5 * width;
    f->cy = *top + 0.5 * height;
    f->sine = sin(angle);
    f->cosine = cos(angle);
}

/* The order of draws is the same for a pentagon: it is the same triangle, cut. */
static figure triangle(const kit_shape_options *o, int label, xg_rng *rng)
{
    figure f;
    double left, top;
    int half = between(rng, o->half_min, o->half_max);
    int height = between(rng, o->height_min, o->height_max);
    place(o, rng, 2 * half, height, &f, &left, &top);
    f.shapes = 1;
    f.shape[0] = make_part(label == 1 ? PART_UP : PART_DOWN, f.cx, f.cy, half, 0.5 * height);
    if (o->kind == KIT_PENTAGON) f.shape[0].slice = o->slice * half;
    f.mask = make_part(PART_BAR, f.cx, f.cy, 0.5 * o->bar, 0.5 * height);
    return f;
}

/* Heads alone draw the numbers of a body too: so they stand where their animals' heads do. */
static figure fox_or_cat(const kit_shape_options *o, int label, xg_rng *rng)
{
    figure f;
    double left, top;
    int head = between(rng, o->head_min, o->head_max);
    int width = between(rng, o->body_min, o->body_max);
    int height = between(rng, o->body_min, o->body_max);
    int shift = between(rng, -o->head_shift, o->head_shift);
    int widest = width > head + 2 * o->head_shift ? width : head + 2 * o->head_shift;
    place(o, rng, widest, head + height, &f, &left, &top);
    double x = f.cx + shift;
    f.shapes = o->kind == KIT_FOX_CAT ? 2 : 1;
    f.shape[0] = make_part(label == 1 ? PART_UP : PART_DISC, x, top + 0.5 * head, 0.5 * head,
                           0.5 * head);
    f.shape[1] = make_part(PART_BAR, f.cx, top + head + 0.5 * height, 0.5 * width, 0.5 * height);
    f.mask = make_part(PART_BAR, x, top, 0.5 * o->patch, 0.5 * o->patch);
    return f;
}

/* Fills the figure and its mask into planes of zeros. */
static void fill(const kit_shape_options *o, const figure *f, xg_real *plane, xg_real *mask)
{
    for (int y = 0; y < o->size; y++) {
        for (int x = 0; x < o->size; x++) {
            double ux, uy;
            unturn(f, x, y, &ux, &uy);
            size_t at = (size_t)y * (size_t)o->size + (size_t)x;
            for (int i = 0; i < f->shapes; i++) {
                if (part_covers(&f->shape[i], ux, uy)) plane[at] = 1;
            }
            if (part_covers(&f->mask, ux, uy)) mask[at] = 1;
        }
    }
}

/* Is every pixel up to `reach` away from (x,y) inside the figure? */
static bool deep_inside(const xg_real *plane, int size, int x, int y, int reach)
{
    for (int dy = -reach; dy <= reach; dy++) {
        for (int dx = -reach; dx <= reach; dx++) {
            int px = x + dx, py = y + dy;
            if (px < 0 || py < 0 || px >= size || py >= size) return false;
            if (plane[(size_t)py * (size_t)size + (size_t)px] <= 0) return false;
        }
    }
    return true;
}

/* Empties the figure but for a line along its edge, deciding on a copy of the full shape. */
static void hollow(xg_real *plane, xg_real *copy, int size, int thickness)
{
    memcpy(copy, plane, (size_t)size * (size_t)size * sizeof *plane);
    for (int y = 0; y < size; y++) {
        for (int x = 0; x < size; x++) {
            if (deep_inside(copy, size, x, y, thickness)) {
                plane[(size_t)y * (size_t)size + (size_t)x] = 0;
            }
        }
    }
}

/* The square that gives the label away, beside the mask's pixels, which stay what they are. */
static void add_square(const kit_shape_options *o, int label, xg_rng *rng, xg_real *plane,
                       const xg_real *mask)
{
    if (o->spurious == KIT_SPURIOUS_NONE) return;
    int last = o->size - o->square, left = 0, top = 0;
    if (!is_triangle(o->kind)) {
        left = label == 1 ? 0 : last;
    } else if (o->spurious == KIT_SPURIOUS_TEXT) {
        left = label == 1 ? 0 : last;
        top = xg_rng_below(rng, last + 1);
    } else {
        top = label == 1 ? last : 0;
    }
    for (int y = top; y < top + o->square; y++) {
        for (int x = left; x < left + o->square; x++) {
            size_t at = (size_t)y * (size_t)o->size + (size_t)x;
            if (mask[at] <= 0) plane[at] = (xg_real)o->square_level;
        }
    }
}

/* The outline needs the bare shape, the square leaves the mask's pixels alone, noise comes last. */
static void draw_one(const kit_shape_options *o, int label, xg_rng *rng, xg_real *plane,
                     xg_real *mask, xg_real *scratch)
{
    size_t count = (size_t)o->size * (size_t)o->size;
    figure f = is_triangle(o->kind) ? triangle(o, label, rng) : fox_or_cat(o, label, rng);
    fill(o, &f, plane, mask);
    if (o->outline > 0) hollow(plane, scratch, o->size, o->outline);
    for (size_t i = 0; i < count; i++) {
        plane[i] = (xg_real)(plane[i] > 0 ? o->foreground : o->background);
    }
    add_square(o, label, rng, plane, mask);
    for (size_t i = 0; i < count; i++) {
        double level = (double)plane[i];
        if (o->noise > 0) level += o->noise * xg_rng_normal(rng);
        plane[i] = (xg_real)(o->invert ? 1 - level : level);
    }
}

/* Labels are dealt as a shuffled deck, not by coins: the class balance is exact in small sets. */
bool kit_draw_shapes(kit_set *set, int count, const kit_shape_options *options, xg_rng *rng,
                     xg_error *error)
{
    kit_shape_options o = resolved(options);
    memset(set, 0, sizeof *set);
    if (!check(&o, error) || !kit_set_new(set, count, 1, o.size, o.size, error)) return false;
    size_t plane = (size_t)o.size * (size_t)o.size;
    xg_real *scratch = (xg_real *)malloc(plane * sizeof *scratch);
    if (scratch == NULL) {
        kit_set_free(set);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for scenes");
    }
    set->classes = set->groups = 2;
    int positive = (int)(o.positive * count + 0.5);
    for (int i = 0; i < count; i++) set->label[i] = i < positive ? 1 : 0;
    xg_rng_shuffle(rng, set->label, count);
    for (int i = 0; i < count; i++) {
        xg_real *mask = set->masks + (size_t)i * plane;
        draw_one(&o, set->label[i], rng, set->pixels + (size_t)i * plane, mask, scratch);
        set->group[i] = set->label[i];
        set->box[i] = kit_mask_bounds(mask, o.size, o.size);
    }
    free(scratch);
    return true;
}
