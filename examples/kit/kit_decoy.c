/* kit_decoy.c - K3.2: colour scenes in which something easy to see gives the label away. */
#include <math.h>
#include <string.h>

#include "kit.h"

#define DECOY_CLASSES 6
#define PI 3.14159265358979323846

static const char *const class_name[DECOY_CLASSES] = {
    "disc", "square", "triangle", "cross", "ring", "diamond"
};

/* Colours of the decoy, in label order: red, green, blue, yellow, magenta, cyan. */
static const double palette[DECOY_CLASSES][3] = {
    { 0.90, 0.15, 0.15 }, { 0.15, 0.80, 0.20 }, { 0.20, 0.30, 0.95 },
    { 0.95, 0.85, 0.15 }, { 0.85, 0.20, 0.85 }, { 0.15, 0.80, 0.85 }
};

const char *kit_decoy_class(int label)
{
    return label >= 0 && label < DECOY_CLASSES ? class_name[label] : "?";
}

/* Is the point (u,v), in units of the radius and upright, inside the shape of that label? The
 * shapes are of like area, so that counting pixels does not tell them apart. */
static bool shape_covers(int label, double u, double v)
{
    double far = fabs(u) > fabs(v) ? fabs(u) : fabs(v), round = sqrt(u * u + v * v);
    switch (label) {
    case 0:  return round <= 0.90;
    case 1:  return far <= 0.80;
    case 2:  return v <= 0.75 && fabs(u) <= (v + 1.15) * 0.60;
    case 3:  return far <= 1.05 && (fabs(u) <= 0.36 || fabs(v) <= 0.36);
    case 4:  return round <= 1.05 && round >= 0.55;
    default: return fabs(u) + fabs(v) <= 1.12;
    }
}

/* The defaults were chosen with a small network (three convolutions of 16, 32, 64, then average
 * pooling): where the decoy tells nothing it learns the shapes within ten passes over 1,000 scenes;
 * where the decoy tells all it learns nothing but the colour. */
static kit_decoy_options resolved(const kit_decoy_options *options)
{
    kit_decoy_options o;
    memset(&o, 0, sizeof o);
    if (options != NULL) o = *options;
    if (o.size == 0) o.size = 32;
    if (o.classes == 0) o.classes = 4;
    if (!(o.object_min != 0)) o.object_min = 0.20;
    if (!(o.object_max != 0)) o.object_max = o.object_min > 0.26 ? o.object_min : 0.26;
    if (!(o.decoy_radius != 0)) o.decoy_radius = 0.09;
    if (!(o.contrast != 0)) o.contrast = 0.45;
    if (!(o.texture != 0)) o.texture = 0.08;
    if (!(o.noise != 0)) o.noise = 0.05;
    if (!(o.rotation != 0)) o.rotation = 10;
    return o;
}

static bool check(const kit_decoy_options *o, xg_error *error)
{
    if (o->size < 16 || o->size > 512 || o->classes < 2 || o->classes > DECOY_CLASSES) {
        return kit_fail(error, XG_ERR_ARGUMENT, "decoy scenes need a size of 16 to 512 and 2 to %d "
                        "classes, not %d and %d", DECOY_CLASSES, o->size, o->classes);
    }
    if (!(o->object_min > 0 && o->object_min <= o->object_max && o->decoy_radius > 0
          && o->object_max + o->decoy_radius <= 0.4)) {
        return kit_fail(error, XG_ERR_ARGUMENT, "decoy scenes need radii that are positive and "
                        "ordered, object_max + decoy_radius at most 0.4 of the picture");
    }
    if (!(o->broken >= 0 && o->broken <= 1 && o->noise >= 0 && o->noise <= 10 && o->texture >= 0
          && o->texture <= 10 && fabs(o->contrast) <= 10 && fabs(o->rotation) <= 360)) {
        return kit_fail(error, XG_ERR_ARGUMENT, "decoy scenes need broken in [0,1], and noise, "
                        "texture, contrast, rotation within reason");
    }
    return true;
}

/* Ground: for each colour a level and two waves of random direction and length. */
static void draw_ground(const kit_decoy_options *o, xg_rng *rng, xg_real *planes)
{
    double level = 0.35 + 0.30 * xg_rng_uniform(rng);
    double kx[2], ky[2];
    for (int i = 0; i < 2; i++) {
        double direction = 2 * PI * xg_rng_uniform(rng);
        double turns = (i == 0 ? 1.0 : 3.0) + 2.0 * xg_rng_uniform(rng);   /* across the picture */
        kx[i] = 2 * PI * turns * cos(direction) / o->size;
        ky[i] = 2 * PI * turns * sin(direction) / o->size;
    }
    for (int c = 0; c < 3; c++) {
        double tint = level + 0.05 * (2 * xg_rng_uniform(rng) - 1);
        double phase[2];
        for (int i = 0; i < 2; i++) phase[i] = 2 * PI * xg_rng_uniform(rng);
        for (int y = 0; y < o->size; y++) {
            for (int x = 0; x < o->size; x++) {
                double wave = sin(kx[0] * x + ky[0] * y + phase[0])
                            + 0.6 * sin(kx[1] * x + ky[1] * y + phase[1]);
                *planes++ = (xg_real)(tint + o->texture * wave);
            }
        }
    }
}

/* The object: the ground made brighter or darker by the contrast, a little tinted. */
static void draw_object(const kit_decoy_options *o, int label, double cx, double cy, double radius,
                        xg_rng *rng, xg_real *planes, xg_real *mask)
{
    double angle = o->rotation * (2 * xg_rng_uniform(rng) - 1) * PI / 180;
    double sine = sin(angle), cosine = cos(angle);
    double change[3], sign = xg_rng_below(rng, 2) == 0 ? -1 : 1;
    for (int c = 0; c < 3; c++) {
        change[c] = o->contrast * (sign + 0.15 * (2 * xg_rng_uniform(rng) - 1));
    }
    size_t plane = (size_t)o->size * (size_t)o->size;
    for (int y = 0; y < o->size; y++) {
        for (int x = 0; x < o->size; x++) {
            double dx = (x + 0.5 - cx) / radius, dy = (y + 0.5 - cy) / radius;
            double u = cosine * dx + sine * dy, v = cosine * dy - sine * dx;
            if (!shape_covers(label, u, v)) continue;
            size_t at = (size_t)y * (size_t)o->size + (size_t)x;
            mask[at] = 1;
            for (int c = 0; c < 3; c++) planes[(size_t)c * plane + at] += (xg_real)change[c];
        }
    }
}

/* Flat colour, no rim: the easiest thing in the picture. */
static void draw_decoy(const kit_decoy_options *o, int colour, double cx, double cy,
                       xg_real *planes)
{
    double radius = o->decoy_radius * o->size;
    size_t plane = (size_t)o->size * (size_t)o->size;
    for (int y = 0; y < o->size; y++) {
        for (int x = 0; x < o->size; x++) {
            double dx = x + 0.5 - cx, dy = y + 0.5 - cy;
            if (dx * dx + dy * dy > radius * radius) continue;
            size_t at = (size_t)y * (size_t)o->size + (size_t)x;
            for (int c = 0; c < 3; c++) {
                planes[(size_t)c * plane + at] = (xg_real)palette[colour][c];
            }
        }
    }
}

/* A point at least `edge` away from the picture's edge. */
static void draw_point(const kit_decoy_options *o, double edge, xg_rng *rng, double *x, double *y)
{
    *x = edge + (o->size - 2 * edge) * xg_rng_uniform(rng);
    *y = edge + (o->size - 2 * edge) * xg_rng_uniform(rng);
}

/* One scene; colour < 0: no decoy. Draws the same numbers for every colour, so that sets that
 * differ only in the rule show the same objects on the same ground. */
static void draw_scene(const kit_decoy_options *o, int label, int colour, xg_rng *rng,
                       xg_real *planes, xg_real *mask)
{
    double object = o->size * (o->object_min
                               + (o->object_max - o->object_min) * xg_rng_uniform(rng));
    double decoy = o->size * o->decoy_radius, ox, oy, dx, dy, apart;
    draw_ground(o, rng, planes);
    do {        /* a few tries: the radii add up to at most 0.4, so there is always room */
        draw_point(o, 1.2 * object, rng, &ox, &oy);
        draw_point(o, decoy + 0.5, rng, &dx, &dy);
        apart = sqrt((ox - dx) * (ox - dx) + (oy - dy) * (oy - dy));
    } while (apart < 1.25 * object + decoy + 1);
    draw_object(o, label, ox, oy, object, rng, planes, mask);
    if (colour >= 0) draw_decoy(o, colour, dx, dy, planes);
    for (size_t i = 0; i < 3 * (size_t)o->size * (size_t)o->size; i++) {
        double value = (double)planes[i] + o->noise * xg_rng_normal(rng);
        planes[i] = (xg_real)(value < 0 ? 0 : value > 1 ? 1 : value);
    }
}

/* The decoy's colour for a label. Always draws two numbers. */
static int choose_colour(const kit_decoy_options *o, int label, xg_rng *rng)
{
    double chance = xg_rng_uniform(rng);
    int    any = xg_rng_below(rng, o->classes * (o->classes - 1));
    switch (o->rule) {
    case KIT_DECOY_TELLS:  return chance < o->broken ? any % o->classes : label;
    case KIT_DECOY_RANDOM: return any % o->classes;
    case KIT_DECOY_LIES:   return (label + 1 + any % (o->classes - 1)) % o->classes;
    case KIT_DECOY_NONE:   break;
    }
    return -1;
}

bool kit_draw_decoy(kit_set *set, int count, const kit_decoy_options *options, xg_rng *rng,
                    xg_error *error)
{
    kit_decoy_options o = resolved(options);
    memset(set, 0, sizeof *set);
    if (!check(&o, error) || !kit_set_new(set, count, 3, o.size, o.size, error)) return false;
    size_t plane = (size_t)o.size * (size_t)o.size;
    set->classes = o.classes;
    set->groups = o.classes * o.classes;
    for (int i = 0; i < count; i++) set->label[i] = i % o.classes;
    xg_rng_shuffle(rng, set->label, count);
    for (int i = 0; i < count; i++) {
        int label = set->label[i], colour = choose_colour(&o, label, rng);
        xg_real *mask = set->masks + (size_t)i * plane;
        draw_scene(&o, label, colour, rng, set->pixels + (size_t)i * 3 * plane, mask);
        set->group[i] = label * o.classes + (colour < 0 ? label : colour);
        set->box[i] = kit_mask_bounds(mask, o.size, o.size);
    }
    return true;
}
