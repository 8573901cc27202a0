/* xguide.c - the command-line tool: picks the command. The commands are in cli_*.c; cli.h says
 * which. */
#include <string.h>

#include "cli.h"

static const struct { const char *name; int (*run)(int, char **); const char *what; } commands[] = {
    { "demo",    cli_demo,    "train plain and guided on drawn scenes, show what it changed" },
    { "train",   cli_train,   "train a classifier on a folder of pictures, guided or plain" },
    { "explain", cli_explain, "explain what a trained network sees in pictures" },
    { "eval",    cli_eval,    "measure a checkpoint or weights on a data set" },
    { "info",    cli_info,    "version, instruction sets, threads, speed of this machine" }
};
enum { COMMANDS = (int)(sizeof commands / sizeof commands[0]) };

int cli_complain(int code, const xg_error *error)
{
    fprintf(stderr, "xguide: %s\n", error->code != XG_ERR_OK ? error->text : "failed");
    return code;
}

static void help(FILE *out)
{
    fprintf(out, "xguide %s: train neural networks with explanations\n\n", xg_version());
    for (int i = 0; i < COMMANDS; i++) {
        fprintf(out, "  xguide %-8s %s\n", commands[i].name, commands[i].what);
    }
    fprintf(out, "\n`xguide COMMAND --help` tells more, with examples. Start with `xguide demo`.\n"
                 "Exit codes: 0 done, 1 failed or stopped, 2 asked wrongly.\n");
}

static int unknown(const char *name)
{
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    const char *near = cli_nearest(name, names, COMMANDS);
    fprintf(stderr, "xguide: there is no command '%s'%s%s; `xguide --help` lists them\n", name,
            near ? "; did you mean " : "", near ? near : "");
    return CLI_USAGE;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        help(stderr);
        return CLI_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(stdout);
        return CLI_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("xguide %s\n", xg_version());
        return CLI_OK;
    }
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    }
    return unknown(argv[1]);
}
