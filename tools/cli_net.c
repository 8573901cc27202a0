/* cli_net.c - a network by name, how pictures are handed to it, and its first weights. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const net_names[] = {
    "cnn", "mlp",
    "resnet18", "resnet34", "resnet50", "resnet20", "resnet32", "resnet44", "resnet56",
    "bcos-resnet18", "bcos-resnet34", "bcos-resnet50", "bcos-resnet20", "bcos-resnet32",
    "bcos-resnet44", "bcos-resnet56", "x-resnet18", "x-resnet34", "x-resnet50", "x-resnet20",
    "x-resnet32", "x-resnet44", "x-resnet56", "squeezenet", "mobilenet_v2"
};
enum { NET_NAMES = (int)(sizeof net_names / sizeof net_names[0]) };

static bool known(const char *name)
{
    for (int i = 0; i < NET_NAMES; i++) {
        if (strcmp(name, net_names[i]) == 0) return true;
    }
    return false;
}

/* "bcos-resnet18" and its like; the name is known to be one of the list. */
static void find_resnet(cli_net *net, const char *name)
{
    net->kind = CLI_RESNET;
    net->norm = KIT_NORM_IMAGENET;
    net->coupled = true;
    if (strncmp(name, "bcos-", 5) == 0) {
        net->resnet.family = XG_FAMILY_BCOS;
        net->norm = KIT_NORM_UNIT;           /* it adds the complements 1 - x itself              */
        name += 5;
    } else if (strncmp(name, "x-", 2) == 0) {
        net->resnet.family = XG_FAMILY_X;
        net->coupled = false;
        name += 2;
    }
    net->resnet.depth = atoi(name + strlen("resnet"));
    bool cifar = net->resnet.depth != 18 && net->resnet.depth != 34 && net->resnet.depth != 50;
    net->head = cifar ? "linear." : "fc.";
    net->size = cifar ? 32 : 224;
}

bool cli_net_find(cli_net *net, const char *name, xg_error *error)
{
    memset(net, 0, sizeof *net);
    if (!known(name)) {
        const char *near = cli_nearest(name, net_names, NET_NAMES);
        return kit_fail(error, XG_ERR_NAME, "there is no network '%.40s'%s%s; there are cnn, mlp, "
                        "squeezenet, mobilenet_v2 and resnet18 34 50 20 32 44 56, the resnets "
                        "also as bcos-... and x-...", name, near ? ": did you mean " : "",
                        near ? near : "");
    }
    net->norm = KIT_NORM_SIGNED;
    net->head = "fc.";
    if (strcmp(name, "cnn") == 0) {
        net->kind = CLI_CNN;
    } else if (strcmp(name, "mlp") == 0) {
        net->kind = CLI_MLP;
    } else if (strcmp(name, "squeezenet") == 0) {
        net->kind = CLI_SQUEEZENET;
        net->norm = KIT_NORM_CAFFE;
        net->head = "conv10.";
        net->size = 227;
    } else if (strcmp(name, "mobilenet_v2") == 0) {
        net->kind = CLI_MOBILENET;
        net->norm = KIT_NORM_SIGNED;
        net->head = "c52.";
        net->size = 224;
        net->shift = 1;                      /* its class 0 is "background"                       */
    } else {
        find_resnet(net, name);
    }
    return true;
}

bool cli_net_from(cli_net *net, const cli_options *o, int classes, xg_error *error)
{
    if (!cli_net_find(net, o->net, error)) return false;
    bool fixed = net->kind == CLI_SQUEEZENET || net->kind == CLI_MOBILENET;
    if (fixed && classes != 1000) {
        return kit_fail(error, XG_ERR_UNSUPPORTED, "%s has the 1000 classes of ImageNet and "
                        "cannot be trained on %d; it is there for `xguide explain`", o->net,
                        classes);
    }
    net->cnn.width = o->width;
    net->cnn.batch_norm = o->batch_norm;
    net->cnn.classes = net->mlp.classes = net->resnet.classes = classes;
    net->resnet.stages = o->stages;
    net->resnet.folded = o->folded;
    net->resnet.small_input = o->small_input;
    net->resnet.frozen_norm = o->frozen_norm;
    if (net->kind == CLI_CNN) net->coupled = o->batch_norm;
    if (o->folded || o->frozen_norm) net->coupled = false;
    if (o->norm > 0) net->norm = (kit_norm)(o->norm - 1);
    return true;
}

xg_tensor *cli_net_run(xg_scope *s, xg_tensor *x)
{
    const cli_net *net = (const cli_net *)s->user;
    switch (net->kind) {
    case CLI_CNN:        return xg_cnn(s, x, &net->cnn);
    case CLI_MLP:        return xg_mlp(s, x, &net->mlp);
    case CLI_SQUEEZENET: return xg_squeezenet(s, x);
    case CLI_MOBILENET:  return xg_mobilenet_v2(s, x);
    case CLI_RESNET:     break;
    }
    if (net->resnet.family == XG_FAMILY_BCOS) x = xg_bcos_input(x);
    return xg_resnet(s, x, &net->resnet);
}

/* Weights from a file. Shapes that differ stay as drawn: a new classifier on an old network. */
static bool load_weights(xg_params *params, const char *path, char said[512], xg_error *error)
{
    xg_load_options lenient = { true, false, NULL };
    xg_load_report report;
    if (xg_params_load(params, path, &lenient, &report) != XG_ERR_OK) {
        return cli_params_fail(params, error);
    }
    if (report.loaded == 0) {
        return kit_fail(error, XG_ERR_NAME, "%.120s has no weight of this network; its names "
                        "begin with %.60s", path, report.unexpected_names);
    }
    if (said != NULL) {
        snprintf(said, 512, "%d tensors loaded; %d missing%s%.90s; %d of another shape, left as "
                 "drawn%s%.90s; %d not used%s%.90s", report.loaded,
                 report.missing, report.missing ? ": " : "", report.missing_names,
                 report.mismatched, report.mismatched ? ": " : "", report.mismatched_names,
                 report.unexpected, report.unexpected ? ": " : "", report.unexpected_names);
    }
    return true;
}

bool cli_net_make(const cli_net *net, xg_tape *tape, xg_params *params, xg_shape input,
                  uint64_t seed, const char *weights, char said[512], xg_error *error)
{
    xg_rng rng = xg_rng_seed(seed);
    xg_mark mark = xg_tape_mark(tape);
    xg_scope scope = xg_scope_new(tape, params, &rng, false);
    scope.user = (void *)(uintptr_t)net;     /* the scope's user pointer is not const             */
    xg_data(cli_net_run(&scope, xg_leaf(tape, input, NULL)));
    bool fine = !xg_failed(tape) || cli_tape_fail(tape, error);
    xg_tape_release(tape, mark);
    if (said != NULL) said[0] = 0;
    if (!fine || weights == NULL || weights[0] == 0) return fine;
    return load_weights(params, weights, said, error);
}

/* Does `name` lie in the layer: "layer3.0.conv1.weight" in "layer3", "conv3.bias" in "conv3"? */
static bool within(const char *name, const char *layer)
{
    size_t length = strlen(layer);
    return strncmp(name, layer, length) == 0 && (name[length] == '.' || name[length] == 0);
}

bool cli_net_train_from(xg_params *params, const char *layer, xg_error *error)
{
    xg_params_freeze(params, "", false);
    if (layer[0] == 0) return true;
    int count = xg_params_count(params), first = 0;
    while (first < count && !within(xg_params_name(params, first), layer)) first++;
    if (first == count) {
        return kit_fail(error, XG_ERR_NAME, "--train-from %.40s: no weight of the network lies "
                        "there; its weights are called %.40s ... %.40s", layer,
                        xg_params_name(params, 0), xg_params_name(params, count - 1));
    }
    for (int i = 0; i < first; i++) xg_params_freeze(params, xg_params_name(params, i), true);
    return true;
}

bool cli_tape_fail(xg_tape *tape, xg_error *error)
{
    const xg_error *why = xg_tape_error(tape);
    return kit_fail(error, why->code, "%s", why->text);
}

bool cli_params_fail(xg_params *params, xg_error *error)
{
    const xg_error *why = xg_params_error(params);
    return kit_fail(error, why->code, "%s", why->text);
}
