/* kit_progress.c - K10: the progress line, and Ctrl-C. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "kit.h"

#define LIVE_EVERY 0.1      /* seconds between two states of a line on a terminal */

void kit_progress_start(kit_progress *p, FILE *out, const char *label, int64_t first, int64_t total)
{
    memset(p, 0, sizeof *p);
    p->out = out != NULL ? out : stderr;
    snprintf(p->label, sizeof p->label, "%s", label);
    p->first = first;
    p->total = total;
    p->started = p->shown = kit_seconds();
    p->every = 5;
    p->live = isatty(fileno(p->out)) == 1;
}

/* "train  [#####.....]  120/400  30 %  51 /s  5.5 s left  note" */
static void compose(const kit_progress *p, int64_t done, double now, bool ended, const char *note,
                    char *out, size_t size)
{
    char   bar[32] = "", rate[32], left[32], time[32];
    double seconds = now - p->started;
    double speed = seconds > 0 ? (double)(done - p->first) / seconds : 0;
    double share = p->total > 0 ? (double)done / (double)p->total : 0;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    for (int i = 0; i < 20; i++) bar[i] = i < (int)(20 * share + 0.5) ? '#' : '.';
    kit_human_count(speed, rate);
    kit_human_time(speed > 0 ? (double)(p->total - done) / speed : -1, left);
    kit_human_time(seconds, time);
    snprintf(out, size, "%s [%s] %lld/%lld %3.0f %%  %s/s  %s %s%s%s", p->label, bar,
             (long long)done, (long long)p->total, 100 * share, rate, ended ? time : left,
             ended ? "in all" : "left", note[0] != '\0' ? "  " : "", note);
}

/* On a terminal the line is written over itself; in a file each state is a line. */
static void show(kit_progress *p, int64_t done, double now, bool ended, const char *format,
                 va_list arguments)
{
    char note[200] = "", line[400];
    if (format != NULL) vsnprintf(note, sizeof note, format, arguments);
    compose(p, done, now, ended, note, line, sizeof line);
    int length = (int)strlen(line);
    if (!p->live) {
        fprintf(p->out, "%s\n", line);
    } else {
        /* Blanks cover what is left of a longer line. */
        int rest = p->width > length ? p->width - length : 0;
        fprintf(p->out, "\r%s%*s%s", line, rest, "", ended ? "\n" : "");
        p->width = length;
    }
    fflush(p->out);
    p->shown = now;
}

void kit_progress_step(kit_progress *p, int64_t done, const char *note, ...)
{
    double now = kit_seconds();
    if (now - p->shown < (p->live ? LIVE_EVERY : p->every)) return;
    va_list arguments;
    va_start(arguments, note);
    show(p, done, now, false, note, arguments);
    va_end(arguments);
}

void kit_progress_end(kit_progress *p, int64_t done, const char *note, ...)
{
    va_list arguments;
    va_start(arguments, note);
    show(p, done, kit_seconds(), true, note, arguments);
    va_end(arguments);
}

/* ------------------------------------------------------------------------------------ Ctrl-C -- */

static volatile sig_atomic_t interrupted = 0;       /* the one mutable global of the kit */

/* Nothing but a flag: a handler may interrupt malloc or printf half-way. */
static void on_signal(int number)
{
    if (interrupted != 0) _exit(128 + number);      /* asked twice: now */
    interrupted = 1;
}

void kit_catch_interrupt(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;                   /* reading and writing files goes on */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool kit_interrupted(void) { return interrupted != 0; }
