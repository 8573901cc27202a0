/* cli.h - what the files of the command-line tool share. From the bottom up:
 *
 *   cli_options.c   the options of a run, as a table: command line, notes of a checkpoint
 *   cli_net.c       a network by name, and how pictures are to be handed to it
 *   cli_data.c      a data set by name or folder, cut into splits, dealt out in batches
 *   cli_step.c      one training step with guidance; measuring a split
 *   cli_state.c     the checkpoint of a run: what is saved, and going on from it
 *   cli_report.c    curves, maps, the table of results
 *   cli_train.c, cli_eval.c, cli_demo.c, cli_explain.c, cli_info.c    the commands
 *   xguide.c        main
 *
 * A function that can fail returns bool and fills an xg_error, as everywhere in the kit. */
#ifndef CLI_H
#define CLI_H

#include "kit.h"

/* What the process returns. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* Prints "xguide: sentence" on stderr and returns `code`. */
int cli_complain(int code, const xg_error *error);

/* ---- options of a run ------------------------------------------------------------------------ */

typedef enum cli_attribution {
    CLI_IXG, CLI_GRADIENT, CLI_GRADCAM, CLI_BCOS, CLI_IG
} cli_attribution;
typedef enum cli_guidance { CLI_NONE, CLI_ENERGY, CLI_L1, CLI_PPCE, CLI_RRR } cli_guidance;
typedef enum cli_score { CLI_CONTRAST, CLI_LOGIT } cli_score;   /* what is explained             */
typedef enum cli_objective { CLI_CROSS_ENTROPY, CLI_BCE } cli_objective;

/* Everything that decides the numbers of a run, and after it what does not. */
typedef struct cli_options {
    const char *data;            /* folder, "decoy", "triangle", "foxcat"                         */
    int         size;            /* pictures are size x size; 0: 128, scenes their own            */
    int         count;           /* scenes: how many to train on                                  */
    double      broken;          /* decoy scenes: part whose decoy tells nothing                  */
    double      val, test;       /* class folders without splits: fractions                       */
    bool        flip;            /* mirror half of the training pictures                          */
    double      annotated;       /* fraction of training pictures whose boxes are known           */
    double      dilation;        /* of the boxes                                                  */

    const char *net;             /* "resnet18", ...                                               */
    const char *weights;         /* safetensors to start from, or NULL                            */
    int         stages, width;
    bool        folded, batch_norm, small_input, frozen_norm;
    int         norm;            /* 0: what the network is used to; else kit_norm + 1             */
    const char *train_from;      /* weights before this layer stay as they are; "" for none       */
    int         head_first;      /* so many steps train the classifier only                       */

    int         attribution, score, loss, objective;
    const char *layer;
    double      lambda;
    bool        balance;         /* classes count alike in the loss on labels                     */
    bool        against;         /* guide what speaks against the label as well                   */
    bool        mean;            /* guidance loss: mean over guided pictures, not their sum       */
    int         extra;           /* annotated pictures added to every batch; 0: as they come      */
    int         steps_ig;        /* of integrated gradients                                       */

    int         epochs, batch;
    int         limit;           /* end after so many steps; 0: after the epochs                  */
    int         optimiser, schedule, warmup;
    double      lr, momentum, decay, clip;
    uint64_t    seed;

    /* Not part of what is computed. */
    const char *out;
    int         threads, save_every, log_every, val_limit;
    bool        no_test, fresh, quiet;
} cli_options;

/* The most rows of cli_options_table. */
#define CLI_MAX_ARGS 64

void cli_options_default(cli_options *o);
/* Fills the table for these options; returns the number of rows. */
int  cli_options_table(cli_options *o, kit_arg table[CLI_MAX_ARGS]);
bool cli_options_check(cli_options *o, xg_error *error);   /* ranges; resolves what is 0 or auto */

/* Options as notes "o.NAME", those that decide the numbers only. */
int  cli_options_save(const cli_options *o, xg_note *notes, int max);
/* Reads them into *o; texts point into the notes. */
bool cli_options_restore(cli_options *o, const xg_note *notes, int count, xg_error *error);
/* Were these notes made with the same options? If not the error names the first that differs. */
bool cli_options_same(const cli_options *o, const xg_note *notes, int count, xg_error *error);

const char *cli_note(const xg_note *notes, int count, const char *key);      /* or NULL           */
bool        cli_note_add(xg_note *notes, int *count, int max, const char *key, const char *format,
                         ...) KIT_PRINTF(5, 6);

/* kit_args_read, which for an option that does not exist also names the nearest one that does. */
kit_args_result cli_args_read(int argc, char **argv, const kit_arg *args, int count,
                              const char *usage, const char *examples, const char **words, int max,
                              int *words_count, xg_error *error);

/* The closest word of the list to what was typed, or NULL when none is close. */
const char *cli_nearest(const char *typed, const char *const *words, int count);

/* ---- networks -------------------------------------------------------------------------------- */

typedef enum cli_kind { CLI_CNN, CLI_MLP, CLI_RESNET, CLI_SQUEEZENET, CLI_MOBILENET } cli_kind;

typedef struct cli_net {
    cli_kind          kind;
    xg_resnet_options resnet;
    xg_cnn_options    cnn;
    xg_mlp_options    mlp;
    kit_norm          norm;          /* how pixels become numbers                                 */
    int               size;          /* the input that its published weights were made for, or 0  */
    int               shift;         /* the logit of class i is number i + shift                  */
    bool              coupled;       /* batch norm: samples of a batch see each other in training */
    const char       *head;          /* the classifier's weights start so                         */
} cli_net;

/* "cnn", "mlp", "resnet18", "bcos-resnet20", "x-resnet50", "squeezenet", "mobilenet_v2". */
bool       cli_net_find(cli_net *net, const char *name, xg_error *error);
bool       cli_net_from(cli_net *net, const cli_options *o, int classes, xg_error *error);
xg_tensor *cli_net_run(xg_scope *s, xg_tensor *x);         /* an xg_net; s->user is the cli_net   */

/* Makes the weights (a pass over zeros), then loads a file into them if weights is given, and
 * says in `said` (may be NULL) what the file did. */
bool cli_net_make(const cli_net *net, xg_tape *tape, xg_params *params, xg_shape input,
                  uint64_t seed, const char *weights, char said[512], xg_error *error);
/* Freezes what comes before `layer` in the order of use; "" thaws everything. */
bool cli_net_train_from(xg_params *params, const char *layer, xg_error *error);

/* ---- data ------------------------------------------------------------------------------------ */

typedef struct cli_data {
    bool       drawn;                /* scenes in memory, else photographs                        */
    kit_set    set[3];               /* by kit_split                                              */
    kit_photos photos;
    kit_view   view;
    int       *item[3], count[3];    /* indices of each split                                     */
    double    *class_weight;         /* [classes], so that all count alike in training            */
    int        classes, groups, channels, size;
    const char *const *group_name;   /* or NULL: the classes'                                     */
    char       class_text[8][24];    /* names of drawn classes                                    */
    xg_rng     rng;                  /* of the training pictures' mirroring                       */
} cli_data;

bool        cli_data_open(cli_data *data, const cli_options *o, kit_norm norm, xg_error *error);
void        cli_data_free(cli_data *data);
bool        cli_data_annotated(const cli_data *data, kit_split split, int index);
const char *cli_data_class(const cli_data *data, int label);
const char *cli_data_group(const cli_data *data, int group, char out[48]);
/* Copies pictures index[0..count-1] of a split into the batch. training: mirror them, and hide the
 * masks that are not annotated; otherwise as they are, with every mask there is. */
bool        cli_data_batch(cli_data *data, kit_batch *batch, kit_split split, const int *index,
                           int count, bool training, kit_pool *pool, xg_error *error);

/* ---- steps and measures ---------------------------------------------------------------------- */

/* What a run holds while it goes. */
typedef struct cli_run {
    cli_options o;
    cli_net     net;
    cli_data    data;
    xg_params  *params;
    xg_tape    *tape;
    kit_pool   *pool;
    xg_rng      rng;                 /* dropout                                                   */
    xg_optim    optim;
    kit_batch   batch;
    kit_order   order, extra;        /* of all training pictures; of the annotated ones           */
    int        *picked;              /* indices of one batch                                      */
    int64_t     step, steps, steps_per_epoch;
} cli_run;

/* Opens everything: data, network, weights, batches, orders. */
bool cli_run_open(cli_run *run, const cli_options *o, char said[512], xg_error *error);
void cli_run_close(cli_run *run);
/* Tape, pool and an empty store: what both a new run and an evaluation start with. */
bool cli_run_engine(cli_run *run, int threads, xg_error *error);

/* Sums over steps since the log's last row. */
typedef struct cli_sums {
    double  loss, class_loss, guide_loss, epg;
    int64_t steps, seen, right, guided;
} cli_sums;

/* Takes the next batch and learns from it. */
bool cli_step(cli_run *run, cli_sums *sums, xg_error *error);

/* The map of `attribution` at a named layer for logits on the tape; [n,1,h,w]. Not for CLI_IG. */
xg_tensor *cli_map(int attribution, int score, xg_tensor *logits, const int *label,
                   const char *layer);
/* The same with CLI_IG, whose passes it makes; x is the input's leaf. */
xg_tensor *cli_map_any(xg_scope *s, const cli_options *o, int attribution, xg_tensor *x,
                       xg_tensor *logits, const int *label, const char *layer);

/* What a split says about the model. */
typedef struct cli_scores {
    xg_groups groups;
    double    epg_layer, epg_input;  /* means over pictures with a box; NaN if not measured       */
    double    seconds;
} cli_scores;

/* limit: look at so many pictures at most, spread over the split; 0: all. maps: measure EPG.
 * False without an error after Ctrl-C. */
bool cli_measure(cli_run *run, kit_split split, int limit, bool maps, cli_scores *out,
                 xg_error *error);

/* The error of a tape or a store, as a kit error; returns false. */
bool cli_tape_fail(xg_tape *tape, xg_error *error);
bool cli_params_fail(xg_params *params, xg_error *error);

/* ---- state and reports ----------------------------------------------------------------------- */

bool cli_state_save(cli_run *run, const cli_sums *sums, xg_error *error);
/* Goes on from run->o.out if there is a checkpoint: *found says so. Refuses other options. */
bool cli_state_resume(cli_run *run, cli_sums *sums, bool *found, xg_error *error);

bool cli_report_scores(const cli_run *run, const cli_scores *scores, kit_split split, FILE *out);
bool cli_report_result(const cli_run *run, const cli_scores *val, const cli_scores *test,
                       xg_error *error);                                    /* result.json        */
bool cli_report_curves(const cli_run *run, xg_error *error);                /* curves.png         */
bool cli_report_maps(cli_run *run, xg_error *error);                        /* maps.png           */

/* ---- commands -------------------------------------------------------------------------------- */

int cli_demo(int argc, char **argv);
int cli_train(int argc, char **argv);
int cli_explain(int argc, char **argv);
int cli_eval(int argc, char **argv);
int cli_info(int argc, char **argv);

#endif /* CLI_H */
