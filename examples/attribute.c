/* attribute.c - one picture, every attribution, one sheet: attribute.png.
 *
 *     build/example_attribute [--quick]     a drawn scene, networks trained on the spot (a little)
 *     build/example_attribute cat.png squeezenet.safetensors      a photograph
 * B-cos contribution maps need a B-cos network, which only the drawn scene has. */
#include <string.h>

#include "kit.h"

enum { COLUMNS = 7, CLASSES = 4, SIZE = 32, BATCH = 32 };
static const char *const columns[COLUMNS] = {
    "gradient", "input x gradient", "guided backprop", "deconvnet", "integrated gradients",
    "Grad-CAM", "B-cos (a B-cos net)"
};

static xg_tensor *small_cnn(xg_scope *s, xg_tensor *x)
{
    xg_cnn_options cnn = { 16, 3, 0, CLASSES, false, false };
    return xg_cnn(s, xg_affine(x, 2, -1), &cnn);
}

/* Three B-cos convolutions; every position votes, the votes are averaged. */
static xg_tensor *small_bcos(xg_scope *s, xg_tensor *x)
{
    xg_bcos_options k;
    xg_window half = { 2, 2, 2, 0, 1, 1 };
    memset(&k, 0, sizeof k);
    k.window.kh = k.window.kw = 3;
    k.window.pad = 1;
    x = xg_name(xg_bcos_input(x), "input");
    x = xg_avgpool(xg_bcos_conv(s, "conv1", x, 24, &k), half);
    x = xg_avgpool(xg_bcos_conv(s, "conv2", x, 48, &k), half);
    return xg_affine(xg_global_avgpool(xg_bcos_conv(s, "fc", x, CLASSES, &k)), 100, 0);
}

/* Trains on scenes whose decoy gives the label away: the maps will show what was learnt. */
static bool train(xg_tape *tape, xg_params *params, xg_net net, int steps, double lr,
                  xg_error *error)
{
    xg_rng rng = xg_rng_seed(1);
    xg_optim adam;
    memset(&adam, 0, sizeof adam);
    adam.kind = XG_ADAM;
    adam.lr = lr;
    for (int i = 0; i < steps && !xg_failed(tape); i++) {
        kit_set set;
        if (!kit_draw_decoy(&set, BATCH, NULL, &rng, error)) return false;
        xg_mark mark = xg_tape_mark(tape);
        xg_scope scope = xg_scope_new(tape, params, &rng, true);
        xg_tensor *x = xg_leaf_borrow(tape, xg_shape4(BATCH, 3, SIZE, SIZE), set.pixels);
        xg_optim_step(&adam, params, xg_cross_entropy(net(&scope, x), set.label, NULL));
        xg_tape_release(tape, mark);
        kit_set_free(&set);
    }
    return !xg_failed(tape);
}

/* The maps, at the size of x, for the class that the network names, on one sheet. */
static bool attribute(xg_scope *scope, xg_net net, xg_tensor *x, xg_tensor *bcos, kit_norm norm,
                      xg_error *error)
{
    xg_shape s = xg_shape_of(x);
    xg_tensor *logits = net(scope, x), *maps[COLUMNS];
    int label = (int)xg_item(xg_argmax(logits));
    xg_tensor *score = xg_pick(logits, &label);
    maps[0] = xg_gradient(score, x);
    maps[1] = xg_input_x_gradient(score, x);
    maps[2] = xg_guided_backprop(score, x);
    maps[3] = xg_deconvnet(score, x);
    maps[4] = xg_integrated_gradients(scope, net, x, &label, NULL);
    maps[5] = xg_upsample(xg_grad_cam(score, xg_find(scope->tape, "features"), NULL), s.h, s.w);
    maps[6] = bcos;
    kit_picture picture;
    kit_map map[COLUMNS];
    char title[32];
    for (int i = 0; i < COLUMNS; i++) {
        kit_map one = { maps[i] ? xg_data(maps[i]) : NULL, s.h, s.w, NULL };
        map[i] = one;
    }
    if (xg_failed(scope->tape)
        || !kit_picture_from(&picture, xg_data(x), 3, s.h, s.w, norm, error)) return false;
    snprintf(title, sizeof title, "class %d", label);
    kit_sheet_row row = { title, &picture, NULL, NULL, 0, map };
    kit_sheet sheet = { "One picture, every attribution", "Red speaks for the class.", columns,
                        bcos ? COLUMNS : COLUMNS - 1, &row, 1, 0, 0 };
    bool fine = kit_sheet_save(&sheet, "attribute.png", error) && puts("attribute.png") >= 0;
    kit_picture_free(&picture);
    return fine;
}

static bool drawn_scene(xg_tape *tape, xg_params *params, bool quick, xg_error *error)
{
    xg_params *bcos = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(9);
    kit_set set;
    bool fine = train(tape, params, small_cnn, quick ? 10 : 200, 0.004, error)
             && train(tape, bcos, small_bcos, quick ? 5 : 100, 0.01, error)
             && kit_draw_decoy(&set, 1, NULL, &rng, error);
    if (fine) {
        xg_scope plain = xg_scope_new(tape, params, NULL, false);
        xg_scope other = xg_scope_new(tape, bcos, NULL, false);
        xg_tensor *x = xg_leaf(tape, xg_shape4(1, 3, SIZE, SIZE), set.pixels);
        xg_tensor *score = xg_pick(small_bcos(&other, x), set.label);
        fine = attribute(&plain, small_cnn, x, xg_bcos_map(score, xg_find(tape, "input")),
                         KIT_NORM_UNIT, error);
        kit_set_free(&set);
    }
    xg_params_free(bcos);
    return fine;
}

static bool photograph(xg_tape *tape, xg_params *params, const char *path, const char *weights,
                       xg_error *error)
{
    kit_picture whole, small;
    xg_load_options create = { true, true, NULL };
    if (xg_params_load(params, weights, &create, NULL) != XG_ERR_OK) return false;
    if (!kit_picture_load(&whole, path, error)) return false;
    bool fine = kit_picture_resize(&whole, 227, 227, &small, error);
    kit_picture_free(&whole);
    if (!fine) return false;
    xg_scope scope = xg_scope_new(tape, params, NULL, false);
    xg_tensor *x = xg_leaf(tape, xg_shape4(1, 3, 227, 227), NULL);
    kit_picture_normalise(small.rgb, 227, 227, KIT_NORM_CAFFE, xg_leaf_data(x));
    kit_picture_free(&small);
    return attribute(&scope, xg_squeezenet, x, NULL, KIT_NORM_CAFFE, error);
}

int main(int argc, char **argv)
{
    xg_error error = { XG_ERR_OK, "" };
    xg_config config;
    memset(&config, 0, sizeof config);
    kit_pool *pool = kit_pool_new(0, &error);
    kit_pool_config(pool, &config);
    kit_memory_config(&config);
    xg_tape *tape = xg_tape_new(&config);
    xg_params *params = xg_params_new(NULL);
    bool fine = argc > 2 ? photograph(tape, params, argv[1], argv[2], &error)
                         : drawn_scene(tape, params, argc > 1, &error);
    const xg_error *why = error.code ? &error : xg_failed(tape) ? xg_tape_error(tape)
                                                                : xg_params_error(params);
    if (!fine) fprintf(stderr, "attribute: %s\n", why->text);
    xg_params_free(params);
    xg_tape_free(tape);
    kit_pool_free(pool);
    return fine ? 0 : 1;
}
