/* cli_eval.c - `xguide eval`: a checkpoint or weights, measured on a data set. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char usage[] =
    "xguide eval CHECKPOINT [options]\n"
    "Measures accuracy by group and the energy of explanations inside the boxes (EPG).\n"
    "CHECKPOINT is a file or folder of `xguide train`, which knows its network, data and layer;\n"
    "options given here take their place. With --weights and --net it measures plain weights.";
static const char examples[] =
    "  xguide eval out/birds\n"
    "  xguide eval out/birds --data other_birds --split val\n"
    "  xguide eval --weights resnet20.safetensors --net resnet20 --data cifar --size 32";

enum { MAX_NOTES = 256 };

/* Reads the notes of a checkpoint by loading it into a store that is thrown away. */
static bool read_notes(const char *word, char path[1024], xg_note *notes, int *count,
                       xg_error *error)
{
    bool fine = kit_is_folder(word) ? kit_join(path, 1024, word, "checkpoint.safetensors", error)
                                    : kit_join(path, 1024, "", word, error);
    if (!fine) return false;
    xg_params *store = xg_params_new(NULL);
    if (store == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a checkpoint");
    fine = xg_checkpoint_load(store, path, notes, MAX_NOTES, count) == XG_ERR_OK
        || cli_params_fail(store, error);
    xg_params_free(store);
    return fine;
}

/* The command line is read twice: over the defaults, to find the checkpoint, and then over what the
 * checkpoint says. */
typedef struct request {
    cli_options o;
    int         split;
    bool        no_maps;
    const char *word[1];
    int         words;
} request;

static kit_args_result read_line(int argc, char **argv, request *r, xg_error *error)
{
    kit_arg table[CLI_MAX_ARGS + 4];
    int rows = cli_options_table(&r->o, table + 3);
    kit_arg own[3] = {
        { NULL, 0, KIT_ARG_HEADING, NULL, NULL, "what to measure" },
        { "split", 0, KIT_ARG_CHOICE, &r->split, "train|val|test", "which pictures" },
        { "no-maps", 0, KIT_ARG_FLAG, &r->no_maps, NULL, "accuracies only, no EPG" }
    };
    memcpy(table, own, sizeof own);
    return cli_args_read(argc, argv, table, rows + 3, usage, examples, r->word, 1, &r->words,
                         error);
}

static int measure(const request *r, const char *checkpoint, xg_error *error)
{
    cli_run run;
    cli_scores scores;
    char said[512] = "";
    int code = CLI_FAILED;
    cli_options o = r->o;
    o.loss = CLI_NONE;                       /* no training: boxes need not be annotated          */
    o.batch = o.batch > 32 ? 32 : o.batch;
    bool fine = cli_run_open(&run, &o, said, error);
    if (fine && checkpoint != NULL) {
        fine = xg_checkpoint_load(run.params, checkpoint, NULL, 0, NULL) == XG_ERR_OK
            || cli_params_fail(run.params, error);
    }
    if (fine && run.data.count[r->split] == 0) {
        fine = kit_fail(error, XG_ERR_ARGUMENT, "%.100s has no pictures in that split; try another "
                        "--split", o.data);
    }
    if (fine && said[0] != 0) printf("%s: %s\n", o.weights, said);
    fine = fine && cli_measure(&run, (kit_split)r->split, o.val_limit, !r->no_maps, &scores, error);
    if (fine) {
        cli_report_scores(&run, &scores, (kit_split)r->split, stdout);
        code = CLI_OK;
    } else if (kit_interrupted()) {
        fprintf(stderr, "xguide: stopped before the end; nothing was measured\n");
    } else {
        cli_complain(CLI_FAILED, error);
    }
    cli_run_close(&run);
    return code;
}

int cli_eval(int argc, char **argv)
{
    xg_error error = { XG_ERR_OK, "" };
    request r;
    char path[1024] = "";
    int count = 0;
    memset(&r, 0, sizeof r);
    r.split = KIT_TEST;
    cli_options_default(&r.o);
    kit_args_result read = read_line(argc, argv, &r, &error);
    if (read == KIT_ARGS_HELP) return CLI_OK;
    if (read == KIT_ARGS_BAD) return cli_complain(CLI_USAGE, &error);
    if (r.words == 0 && r.o.weights[0] == 0) {
        kit_fail(&error, XG_ERR_ARGUMENT, "eval needs a checkpoint, or --weights with --net and "
                 "--data");
        return cli_complain(CLI_USAGE, &error);
    }
    xg_note *notes = (xg_note *)calloc(MAX_NOTES, sizeof *notes);
    bool fine = notes != NULL || kit_fail(&error, XG_ERR_MEMORY, "out of memory for notes");
    if (fine && r.words > 0) {
        fine = read_notes(r.word[0], path, notes, &count, &error)
            && cli_options_restore(&r.o, notes, count, &error);
        if (fine) r.o.weights = "";
        if (fine) fine = read_line(argc, argv, &r, &error) == KIT_ARGS_OK;
    }
    kit_catch_interrupt();
    int code = !fine ? cli_complain(CLI_FAILED, &error)
             : !cli_options_check(&r.o, &error) ? cli_complain(CLI_USAGE, &error)
             : measure(&r, r.words > 0 ? path : NULL, &error);
    free(notes);
    return code;
}
