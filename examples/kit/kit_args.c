/* kit_args.c - K13: options on the command line, by a table. getopt_long does the reading. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

#define FIRST_CODE 1000      /* of getopt: option i is FIRST_CODE + i, so letters may be missing */

/* The i-th word of "plain|energy|l1"; its length, or 0 when there is none. */
static size_t choice(const char *choices, int i, const char **start)
{
    while (i > 0) {
        choices = strchr(choices, '|');
        if (choices == NULL) return 0;
        choices++;
        i--;
    }
    *start = choices;
    return strcspn(choices, "|");
}

/* Words, not numbers, on the command line; the position in the list is what programs switch on. */
static bool set_choice(const kit_arg *arg, const char *text, xg_error *error)
{
    const char *word;
    size_t length;
    for (int i = 0; (length = choice(arg->argument, i, &word)) > 0; i++) {
        if (strlen(text) == length && memcmp(text, word, length) == 0) {
            *(int *)arg->value = i;
            return true;
        }
    }
    return kit_fail(error, XG_ERR_ARGUMENT, "--%s takes one of %s, not '%.40s'", arg->name,
                    arg->argument, text);
}

/* Stores the text as the option's kind wants it. */
static bool set_value(const kit_arg *arg, const char *text, xg_error *error)
{
    char  *end = NULL;
    double number;
    long   whole;
    errno = 0;
    switch (arg->kind) {
    case KIT_ARG_FLAG:
        *(bool *)arg->value = true;
        return true;
    case KIT_ARG_TEXT:
        *(const char **)arg->value = text;
        return true;
    case KIT_ARG_CHOICE:
        return set_choice(arg, text, error);
    case KIT_ARG_INT:
        whole = strtol(text, &end, 10);
        if (end == text || *end != '\0' || errno != 0 || whole < INT_MIN || whole > INT_MAX) break;
        *(int *)arg->value = (int)whole;
        return true;
    case KIT_ARG_SEED:
        if (text[0] < '0' || text[0] > '9') break;      /* strtoull would take "-1" */
        *(uint64_t *)arg->value = (uint64_t)strtoull(text, &end, 10);
        if (*end != '\0' || errno != 0) break;
        return true;
    case KIT_ARG_NUMBER:
        number = strtod(text, &end);
        if (end == text || *end != '\0' || !isfinite(number)) break;
        *(double *)arg->value = number;
        return true;
    case KIT_ARG_HEADING:
        break;
    }
    return kit_fail(error, XG_ERR_ARGUMENT, "--%s takes a %snumber, not '%.40s'", arg->name,
                    arg->kind == KIT_ARG_NUMBER ? "" : "whole ", text);
}

/* "  -e, --epochs N" */
static int left_column(const kit_arg *arg, char *out, size_t size)
{
    char letter[8] = "    ";
    if (arg->letter != 0) snprintf(letter, sizeof letter, "-%c, ", arg->letter);
    bool takes = arg->kind != KIT_ARG_FLAG;
    return snprintf(out, size, "  %s--%s%s%s", letter, arg->name, takes ? " " : "",
                    !takes ? "" : arg->argument != NULL ? arg->argument : "N");
}

/* What stands in the value now is the default. */
static void print_default(const kit_arg *arg)
{
    const char *word;
    size_t length;
    switch (arg->kind) {
    case KIT_ARG_INT:
        printf(" (%d)", *(const int *)arg->value);
        break;
    case KIT_ARG_NUMBER:
        printf(" (%g)", *(const double *)arg->value);
        break;
    case KIT_ARG_SEED:
        printf(" (%llu)", (unsigned long long)*(const uint64_t *)arg->value);
        break;
    case KIT_ARG_TEXT:
        if (*(const char *const *)arg->value != NULL) printf(" (%s)", *(const char **)arg->value);
        break;
    case KIT_ARG_CHOICE:
        length = choice(arg->argument, *(const int *)arg->value, &word);
        if (length > 0) printf(" (%.*s)", (int)length, word);
        break;
    case KIT_ARG_FLAG:
    case KIT_ARG_HEADING:
        break;
    }
}

/* Options in the order of the table, headings between them, defaults in brackets. */
static void print_help(const kit_arg *args, int count, const char *usage, const char *examples)
{
    enum { COLUMN = 30 };
    printf("%s\n", usage);
    for (int i = 0; i < count; i++) {
        if (args[i].kind == KIT_ARG_HEADING) {
            printf("\n%s\n", args[i].help);
            continue;
        }
        char left[160];
        int  width = left_column(&args[i], left, sizeof left);
        if (width >= COLUMN) printf("%s\n%*s", left, COLUMN, "");
        else printf("%-*s", COLUMN, left);
        printf("%s", args[i].help);
        print_default(&args[i]);
        printf("\n");
    }
    printf("%-30s%s\n", "  -h, --help", "print this");
    if (examples != NULL) printf("\n%s\n", examples);
}

/* The tables that getopt_long reads, from ours. Both have room for count + 1 options. */
static void make_tables(const kit_arg *args, int count, struct option *longs, char *letters)
{
    int n = 0;
    *letters++ = ':';                       /* a missing argument is told from an unknown option */
    for (int i = 0; i < count; i++) {
        if (args[i].kind == KIT_ARG_HEADING) continue;
        bool takes = args[i].kind != KIT_ARG_FLAG;
        longs[n].name = args[i].name;
        longs[n].has_arg = takes ? required_argument : no_argument;
        longs[n].val = FIRST_CODE + i;
        n++;
        if (args[i].letter == 0) continue;
        *letters++ = args[i].letter;
        if (takes) *letters++ = ':';
    }
    longs[n].name = "help";
    longs[n].val = 'h';
    *letters++ = 'h';
    *letters = '\0';
}

/* The option of a code that getopt_long returned: long names by number, short ones by letter. */
static const kit_arg *find(const kit_arg *args, int count, int code)
{
    if (code >= FIRST_CODE) return &args[code - FIRST_CODE];
    for (int i = 0; i < count; i++) {
        if (args[i].kind != KIT_ARG_HEADING && args[i].letter == code) return &args[i];
    }
    return NULL;
}

/* Reads all options; true: go on with the words behind them. */
static kit_args_result read_options(int argc, char **argv, const kit_arg *args, int count,
                                    const struct option *longs, const char *letters,
                                    xg_error *error)
{
    opterr = 0;                             /* sentences of ours, not of libc */
#ifdef __GLIBC__
    optind = 0;                             /* 0 also forgets an earlier reading */
#else
    optind = 1;
#endif
    for (;;) {
        int code = getopt_long(argc, argv, letters, longs, NULL);
        if (code == -1) return KIT_ARGS_OK;
        if (code == 'h' && find(args, count, 'h') == NULL) return KIT_ARGS_HELP;
        const kit_arg *arg = code == '?' || code == ':' ? NULL : find(args, count, code);
        if (arg == NULL) {
            const char *word = optind >= 1 && optind <= argc ? argv[optind - 1] : "?";
            kit_fail(error, XG_ERR_ARGUMENT, code == ':' ? "%.60s needs a value; see --help"
                     : "there is no option like %.60s (or it takes no value); see --help", word);
            return KIT_ARGS_BAD;
        }
        if (!set_value(arg, optarg, error)) return KIT_ARGS_BAD;
    }
}

kit_args_result kit_args_read(int argc, char **argv, const kit_arg *args, int count,
                              const char *usage, const char *examples, const char **words, int max,
                              int *words_count, xg_error *error)
{
    struct option *longs = (struct option *)calloc((size_t)count + 2, sizeof *longs);
    char *letters = (char *)calloc(2 * (size_t)count + 4, 1);
    kit_args_result result = KIT_ARGS_BAD;
    if (longs == NULL || letters == NULL) {
        kit_fail(error, XG_ERR_MEMORY, "out of memory for options");
    } else {
        make_tables(args, count, longs, letters);
        result = read_options(argc, argv, args, count, longs, letters, error);
    }
    free(longs);
    free(letters);
    if (result == KIT_ARGS_HELP) print_help(args, count, usage, examples);
    if (result != KIT_ARGS_OK) return result;
    int found = argc - optind;
    if (found > max) {
        kit_fail(error, XG_ERR_ARGUMENT, "'%.60s' is not understood here; see --help",
                 argv[optind + max]);
        return KIT_ARGS_BAD;
    }
    for (int i = 0; i < found; i++) words[i] = argv[optind + i];
    if (words_count != NULL) *words_count = found;
    return KIT_ARGS_OK;
}
