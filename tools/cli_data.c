/* cli_data.c - a data set by name or folder, cut into splits, dealt out in batches. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const waterbird_groups[4] = {
    "landbird on land", "landbird on water", "waterbird on land", "waterbird on water"
};

/* ---- scenes ---------------------------------------------------------------------------------- */

static int split_count(const cli_options *o, int split)
{
    return split == KIT_TRAIN ? o->count : split == KIT_VAL ? 400 : 800;
}

/* The decoy tells the label in training; it is any colour for validation, a wrong one for the
 * test. */
static bool draw_decoys(cli_data *data, const cli_options *o, xg_rng *rng, xg_error *error)
{
    static const kit_decoy_rule rules[3] = { KIT_DECOY_TELLS, KIT_DECOY_RANDOM, KIT_DECOY_LIES };
    for (int split = 0; split < 3; split++) {
        kit_decoy_options scene;
        memset(&scene, 0, sizeof scene);
        scene.size = o->size;
        scene.rule = rules[split];
        scene.broken = o->broken;
        if (!kit_draw_decoy(&data->set[split], split_count(o, split), &scene, rng, error)) {
            return false;
        }
    }
    for (int i = 0; i < data->set[0].classes; i++) {
        snprintf(data->class_text[i], sizeof data->class_text[i], "%s", kit_decoy_class(i));
    }
    return true;
}

/* Black-and-white shapes with a tell-tale square in training; the test shows only part of them. */
static bool draw_shapes(cli_data *data, const cli_options *o, bool fox, xg_rng *rng,
                        xg_error *error)
{
    static const kit_shapes kinds[2][3] = {
        { KIT_TRIANGLE, KIT_TRIANGLE, KIT_PENTAGON },
        { KIT_FOX_CAT, KIT_FOX_CAT, KIT_TRIANGLE_CIRCLE }
    };
    for (int split = 0; split < 3; split++) {
        kit_shape_options scene;
        memset(&scene, 0, sizeof scene);
        scene.size = o->size;
        scene.kind = kinds[fox][split];
        scene.spurious = split == KIT_TRAIN ? KIT_SPURIOUS_CAPTION : KIT_SPURIOUS_NONE;
        if (!kit_draw_shapes(&data->set[split], split_count(o, split), &scene, rng, error)) {
            return false;
        }
    }
    snprintf(data->class_text[0], sizeof data->class_text[0], "%s", fox ? "cat" : "down");
    snprintf(data->class_text[1], sizeof data->class_text[1], "%s", fox ? "fox" : "up");
    return true;
}

static bool open_scenes(cli_data *data, const cli_options *o, kit_norm norm, xg_error *error)
{
    data->view.norm = norm == KIT_NORM_UNIT ? KIT_NORM_UNIT : KIT_NORM_SIGNED;
    if (o->dilation > 0) {
        return kit_fail(error, XG_ERR_ARGUMENT, "--dilation grows boxes; the masks of drawn "
                        "scenes are exact: leave it out");
    }
    xg_rng rng = xg_rng_seed(o->seed ^ 0x5ce7e5u);
    bool fine = strcmp(o->data, "decoy") == 0 ? draw_decoys(data, o, &rng, error)
              : draw_shapes(data, o, strcmp(o->data, "foxcat") == 0, &rng, error);
    if (!fine) return false;
    data->drawn = true;
    data->classes = data->set[0].classes;
    data->groups = data->set[0].groups;
    data->channels = data->set[0].channels;
    data->size = data->set[0].h;
    kit_annotate(data->set[0].annotated, data->set[0].count, o->annotated, o->seed);
    for (int split = 0; split < 3; split++) {
        data->count[split] = data->set[split].count;
        data->item[split] = (int *)calloc((size_t)data->count[split] + 1, sizeof(int));
        if (!data->item[split]) return kit_fail(error, XG_ERR_MEMORY, "out of memory for an order");
        for (int i = 0; i < data->count[split]; i++) data->item[split][i] = i;
    }
    return true;
}

/* ---- photographs ----------------------------------------------------------------------------- */

static bool open_photos(cli_data *data, const cli_options *o, kit_norm norm, xg_error *error)
{
    kit_photos_options options;
    memset(&options, 0, sizeof options);
    options.size = o->size;
    options.val = o->val;
    options.test = o->test;
    options.seed = o->seed;
    kit_photos *photos = &data->photos;
    if (!kit_photos_open(photos, o->data, &options, error)) return false;
    if (photos->boxes > 0 && !kit_photos_annotate(photos, o->annotated, o->seed, error)) {
        return false;
    }
    data->classes = photos->classes;
    data->groups = photos->groups;
    data->channels = 3;
    data->size = photos->size;
    if (photos->count > 0 && photos->photo[0].place >= 0 && photos->groups == 4) {
        data->group_name = waterbird_groups;
    }
    data->view.norm = norm;
    data->view.dilation = o->dilation;
    data->view.flip = o->flip;
    for (int split = 0; split < 3; split++) {
        data->count[split] = kit_photos_split(photos, (kit_split)split, NULL);
        data->item[split] = (int *)calloc((size_t)data->count[split] + 1, sizeof(int));
        if (!data->item[split]) return kit_fail(error, XG_ERR_MEMORY, "out of memory for an order");
        kit_photos_split(photos, (kit_split)split, data->item[split]);
    }
    return true;
}

static int label_of(const cli_data *data, kit_split split, int index)
{
    return data->drawn ? data->set[split].label[index] : data->photos.photo[index].label;
}

/* Weights of mean 1 over the training pictures; a class without pictures counts 0. */
static bool weigh_classes(cli_data *data, xg_error *error)
{
    data->class_weight = (double *)calloc((size_t)data->classes + 1, sizeof(double));
    if (!data->class_weight) {
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for class weights");
    }
    for (int i = 0; i < data->count[KIT_TRAIN]; i++) {
        int label = label_of(data, KIT_TRAIN, data->item[KIT_TRAIN][i]);
        if (label >= 0) data->class_weight[label] += 1;
    }
    for (int i = 0; i < data->classes; i++) {
        double seen = data->class_weight[i];
        if (seen > 0) data->class_weight[i] = data->count[KIT_TRAIN] / (data->classes * seen);
    }
    return true;
}

bool cli_data_open(cli_data *data, const cli_options *o, kit_norm norm, xg_error *error)
{
    static const char *const drawn[3] = { "decoy", "triangle", "foxcat" };
    memset(data, 0, sizeof *data);
    data->rng = xg_rng_seed(o->seed ^ 0xf11bu);
    for (int i = 0; i < 3; i++) {
        if (strcmp(o->data, drawn[i]) != 0) continue;
        return open_scenes(data, o, norm, error) && weigh_classes(data, error);
    }
    if (kit_is_folder(o->data)) {
        return open_photos(data, o, norm, error) && weigh_classes(data, error);
    }
    const char *near = cli_nearest(o->data, drawn, 3);
    return kit_fail(error, XG_ERR_IO, "--data %.100s is no folder%s%s; give a folder of pictures, "
                    "or decoy, triangle or foxcat for scenes drawn by rule", o->data,
                    near ? "; did you mean " : "", near ? near : "");
}

void cli_data_free(cli_data *data)
{
    for (int split = 0; split < 3; split++) {
        kit_set_free(&data->set[split]);
        free(data->item[split]);
    }
    kit_photos_free(&data->photos);
    free(data->class_weight);
    memset(data, 0, sizeof *data);
}

/* ---- access ---------------------------------------------------------------------------------- */

bool cli_data_annotated(const cli_data *data, kit_split split, int index)
{
    if (data->drawn) return data->set[split].annotated[index];
    return data->photos.photo[index].annotated;
}

const char *cli_data_class(const cli_data *data, int label)
{
    if (label < 0 || label >= data->classes) return "?";
    return data->drawn ? data->class_text[label] : data->photos.class_name[label];
}

const char *cli_data_group(const cli_data *data, int group, char out[48])
{
    if (data->group_name != NULL) {
        snprintf(out, 48, "%s", data->group_name[group]);
    } else if (data->groups == data->classes * data->classes && data->drawn) {
        snprintf(out, 48, "%s, decoy of %s", cli_data_class(data, group / data->classes),
                 cli_data_class(data, group % data->classes));
    } else {
        snprintf(out, 48, "%.40s", cli_data_class(data, group));
    }
    return out;
}

/* Scenes hold 0 .. 1 and become -1 .. 1 for networks that want that: grey ground is then near 0 and
 * explains little by itself. */
static void centre(kit_batch *batch)
{
    size_t sample = (size_t)batch->channels * (size_t)batch->h * (size_t)batch->w;
    for (size_t i = 0; i < sample * (size_t)batch->count; i++) {
        batch->pixels[i] = 2 * batch->pixels[i] - 1;
    }
}

bool cli_data_batch(cli_data *data, kit_batch *batch, kit_split split, const int *index, int count,
                    bool training, kit_pool *pool, xg_error *error)
{
    if (data->drawn) {
        if (!kit_batch_from_set(batch, &data->set[split], index, count, error)) return false;
        if (data->view.norm == KIT_NORM_SIGNED) centre(batch);
        return true;
    }
    kit_view view = data->view;
    view.all_boxes = !training;
    if (!training) {
        view.dilation = 0;
        view.flip = false;
    }
    return kit_batch_from_photos(batch, &data->photos, index, count, &view, &data->rng, pool,
                                 error);
}
