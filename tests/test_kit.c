/* test_kit.c - the kit: tables of text, pictures, sheets, logs, threads, command line. */
#define _POSIX_C_SOURCE 200809L
#include "scratch.h"

#include <pthread.h>
#include <time.h>

/* -------------------------------------------------------------------------------------- base -- */

static void test_errors_keep_the_first(void)
{
    xg_error error = no_error();
    CHECK(!kit_fail(&error, XG_ERR_IO, "first %d", 1));
    CHECK(!kit_fail(&error, XG_ERR_SHAPE, "second"));
    CHECK(error.code == XG_ERR_IO && strcmp(error.text, "first 1") == 0);
    CHECK(!kit_fail(NULL, XG_ERR_IO, "nobody listens"));
}

static void test_files(void)
{
    char path[256], joined[16];
    unsigned char *bytes = NULL;
    size_t count = 0;
    xg_error error = no_error();
    write_text("deep/er/file.txt", "hello");
    CHECK(kit_is_file(in_scratch("deep/er/file.txt", path)));
    CHECK(!kit_is_file(in_scratch("deep/er", path)) && kit_is_folder(path));
    REQUIRE(kit_read_file(in_scratch("deep/er/file.txt", path), 100, &bytes, &count, &error));
    CHECK(count == 5 && strcmp((char *)bytes, "hello") == 0);
    free(bytes);
    CHECK(!kit_read_file(path, 4, &bytes, &count, &error));
    CHECK_SAYS(error, XG_ERR_UNSUPPORTED, "limit of 4");
    error = no_error();
    CHECK(!kit_read_file(in_scratch("missing", path), 4, &bytes, &count, &error));
    CHECK_SAYS(error, XG_ERR_IO, "missing");
    error = no_error();
    CHECK(!kit_write_file(in_scratch("deep/no/such/x", path), "a", 1, &error));
    CHECK_ERROR(&error, XG_ERR_IO);
    error = no_error();
    CHECK(!kit_make_folder(in_scratch("deep/er/file.txt/below", path), &error));
    CHECK_ERROR(&error, XG_ERR_IO);
    CHECK(kit_join(joined, sizeof joined, "a", "b", NULL) && strcmp(joined, "a/b") == 0);
    CHECK(kit_join(joined, sizeof joined, "a/", "b", NULL) && strcmp(joined, "a/b") == 0);
    CHECK(kit_join(joined, sizeof joined, "a", "/b", NULL) && strcmp(joined, "/b") == 0);
    CHECK(!kit_join(joined, sizeof joined, "0123456789", "012345", NULL));
}

static void test_human_numbers(void)
{
    char out[32];
    CHECK(strcmp(kit_human_time(0.42, out), "0.4 s") == 0);
    CHECK(strcmp(kit_human_time(59.97, out), "1 min 00 s") == 0);
    CHECK(strcmp(kit_human_time(200, out), "3 min 20 s") == 0);
    CHECK(strcmp(kit_human_time(7500, out), "2 h 05 min") == 0);
    CHECK(strcmp(kit_human_time(-1, out), "?") == 0);
    CHECK(strcmp(kit_human_count(950, out), "950") == 0);
    CHECK(strcmp(kit_human_count(11170, out), "11.2 k") == 0);
    CHECK(strcmp(kit_human_count(999999, out), "1.00 M") == 0);
    CHECK(strcmp(kit_human_bytes(512, out), "512 B") == 0);
    CHECK(strcmp(kit_human_bytes(3.25 * 1024 * 1024, out), "3.25 MiB") == 0);
}

/* --------------------------------------------------------------------------------------- csv -- */

static void test_csv_dialects(void)
{
    char path[256];
    kit_csv csv;
    xg_error error = no_error();
    int n = 0;
    double x = 0;
    write_text("a.csv", "\xEF\xBB\xBFname,\"num,ber\",text\r\n"
               "a,1,\"say \"\"hi\"\", twice\"\r\n\r\n\"two\nlines\",2.5,\r\nlast,3,x");
    REQUIRE(kit_csv_read(&csv, in_scratch("a.csv", path), ',', true, &error));
    CHECK(csv.rows == 4 && csv.columns == 3);
    CHECK(kit_csv_column(&csv, "name", NULL) == 0);
    CHECK(kit_csv_column(&csv, "num,ber", NULL) == 1);
    CHECK(strcmp(kit_csv_text(&csv, 1, 2), "say \"hi\", twice") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 2, 0), "two\nlines") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 2, 2), "") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 3, 2), "x") == 0);
    CHECK(csv.line[1] == 2 && csv.line[2] == 4 && csv.line[3] == 6);
    CHECK(kit_csv_int(&csv, 1, 1, 0, 9, &n, NULL) && n == 1);
    CHECK(kit_csv_number(&csv, 2, 1, &x, NULL) && x > 2.49 && x < 2.51);
    CHECK(!kit_csv_int(&csv, 2, 1, 0, 9, &n, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "a.csv line 4: column 'num,ber' should be a whole number");
    error = no_error();
    CHECK(!kit_csv_int(&csv, 3, 1, 0, 2, &n, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "from 0 to 2, not '3'");
    error = no_error();
    CHECK(!kit_csv_number(&csv, 2, 2, &x, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "line 4");
    error = no_error();
    CHECK(kit_csv_column(&csv, "label", &error) == -1);
    CHECK_SAYS(error, XG_ERR_FORMAT, "no column 'label'; there are: name, num,ber, text");
    kit_csv_free(&csv);
}

static void test_csv_blanks_separate(void)
{
    char path[256];
    kit_csv csv;
    write_text("b.txt", "1 2.5   3 \n 4  5 6\r\n7 8 9");
    REQUIRE(kit_csv_read(&csv, in_scratch("b.txt", path), ' ', false, NULL));
    CHECK(csv.rows == 3 && csv.columns == 3);
    CHECK(strcmp(kit_csv_text(&csv, 0, 2), "3") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 1, 0), "4") == 0);
    CHECK(strcmp(kit_csv_text(&csv, 2, 2), "9") == 0);
    kit_csv_free(&csv);
}

static void test_csv_errors(void)
{
    static const struct { const char *text, *says; } bad[] = {
        { "a,b\n1,2\n3\n",        "line 3: 1 cells where the first line has 2" },
        { "a,b\n1,2,3\n",         "line 2: 3 cells" },
        { "a,b\n\"1,2\n3,4\n",    "line 2: a quoted cell is never closed" },
        { "a,b\n\"1\"x,2\n",      "line 2: text follows a closing quote" },
        { "",                     "empty" },
        { "\n\n",                 "empty" },
    };
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kit_csv csv;
        xg_error error = no_error();
        write_text("bad.csv", bad[i].text);
        CHECK(!kit_csv_read(&csv, in_scratch("bad.csv", path), ',', true, &error));
        CHECK_SAYS(error, XG_ERR_FORMAT, bad[i].says);
        CHECK(strstr(error.text, "bad.csv") != NULL);
        CHECK(csv.text == NULL);
    }
}

/* ---------------------------------------------------------------------------------- pictures -- */

static void test_png_round_trip(void)
{
    char path[256];
    kit_picture a, b;
    xg_rng rng = xg_rng_seed(3);
    write_text("round.png", "");
    REQUIRE(kit_picture_new(&a, 37, 23, KIT_WHITE, NULL));
    for (int i = 0; i < 37 * 23 * 3; i++) a.rgb[i] = (unsigned char)xg_rng_below(&rng, 256);
    REQUIRE(kit_picture_save(&a, in_scratch("round.png", path), NULL));
    REQUIRE(kit_picture_load(&b, path, NULL));
    CHECK(b.w == 37 && b.h == 23 && memcmp(a.rgb, b.rgb, 37 * 23 * 3) == 0);
    kit_picture_free(&b);
    kit_picture_free(&a);
}

/* Normalising and back is the identity on bytes, in every rule. */
static void test_normalisation_round_trip(void)
{
    static const char *const name[] = { "unit", "imagenet", "caffe", "signed" };
    unsigned char rgb[256 * 3];
    xg_real planes[256 * 3];
    kit_norm norm;
    xg_error error = no_error();
    for (int i = 0; i < 256 * 3; i++) rgb[i] = (unsigned char)(i * 7 % 256);
    for (int k = 0; k < 4; k++) {
        kit_picture back;
        REQUIRE(kit_norm_find(name[k], &norm, NULL));
        kit_picture_normalise(rgb, 16, 16, norm, planes);
        REQUIRE(kit_picture_from(&back, planes, 3, 16, 16, norm, NULL));
        CHECK(memcmp(back.rgb, rgb, sizeof rgb) == 0);
        kit_picture_free(&back);
    }
    kit_picture_normalise(rgb, 16, 16, KIT_NORM_CAFFE, planes);
    CHECK_NEAR(planes[0], rgb[2] - 104, 1e-4);                  /* blue comes first */
    kit_picture_normalise(rgb, 16, 16, KIT_NORM_IMAGENET, planes);
    CHECK_NEAR(planes[256], (rgb[1] / 255.0 - 0.456) / 0.224, 1e-5);
    /* A set that is normalised afterwards holds the same numbers, and shows the same picture. */
    for (int k = 0; k < 4; k++) {
        kit_set set;
        kit_picture back;
        REQUIRE(kit_set_new(&set, 1, 3, 16, 16, NULL));
        kit_picture_normalise(rgb, 16, 16, KIT_NORM_UNIT, set.pixels);
        kit_picture_normalise(rgb, 16, 16, (kit_norm)k, planes);
        kit_set_normalise(&set, (kit_norm)k);
        double worst = 0;
        for (int i = 0; i < 768; i++) {
            worst = fmax(worst, fabs((double)(set.pixels[i] - planes[i])));
        }
        CHECK(worst < 1e-4);
        REQUIRE(kit_picture_from(&back, planes, 3, 16, 16, (kit_norm)k, NULL));
        CHECK(memcmp(back.rgb, rgb, sizeof rgb) == 0);
        kit_picture_free(&back);
        kit_set_free(&set);
    }
    CHECK(!kit_norm_find("none", &norm, &error));
    CHECK_SAYS(error, XG_ERR_NAME, "imagenet");
}

static void test_resize_keeps_the_mean(void)
{
    kit_picture a, b;
    xg_error error = no_error();
    REQUIRE(kit_picture_new(&a, 64, 64, KIT_BLACK, NULL));
    for (int y = 0; y < 64; y++) {
        for (int x = 0; x < 64; x++) if ((x + y) % 2) kit_draw_pixel(&a, x, y, KIT_WHITE, 1);
    }
    REQUIRE(kit_picture_resize(&a, 16, 8, &b, &error));
    CHECK(b.w == 16 && b.h == 8);
    int wrong = 0;                          /* a fine chequerboard becomes even grey, not black */
    for (int i = 0; i < 16 * 8 * 3; i++) wrong += b.rgb[i] < 120 || b.rgb[i] > 135;
    CHECK(wrong == 0);
    kit_picture_free(&b);
    CHECK(!kit_picture_resize(&a, 0, 8, &b, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    kit_picture_free(&a);
}

static void test_hostile_pictures(void)
{
    /* A PNG head that promises 30000 x 30000 pixels. */
    static const unsigned char huge[] = {
        0x89, 'P', 'N', 'G', 13, 10, 26, 10, 0, 0, 0, 13, 'I', 'H', 'D', 'R', 0, 0, 0x75, 0x30,
        0, 0, 0x75, 0x30, 8, 2, 0, 0, 0, 0, 0, 0, 0
    };
    static const struct { const void *bytes; size_t count; } bad[] = {
        { "", 0 }, { "GIF89a\1\0\1\0\0\0\0", 13 }, { "BM and more of it", 17 },
        { huge, sizeof huge }, { huge, 20 }, { "P6 4 4 255\nabc", 14 },
        { "\xff\xd8\xff\xe0 broken", 11 }
    };
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kit_picture p;
        xg_error error = no_error();
        in_scratch("hostile", path);
        REQUIRE(kit_write_file(path, bad[i].bytes, bad[i].count, NULL));
        CHECK(!kit_picture_load(&p, path, &error));
        CHECK_SAYS(error, error.code, "hostile");
        CHECK(error.code == XG_ERR_FORMAT || error.code == XG_ERR_UNSUPPORTED);
        CHECK(p.rgb == NULL);
    }
}

static void test_drawing_is_clipped(void)
{
    kit_picture p, stamp;
    REQUIRE(kit_picture_new(&p, 20, 10, KIT_WHITE, NULL));
    REQUIRE(kit_picture_new(&stamp, 30, 30, KIT_BLACK, NULL));
    kit_draw_line(&p, -50, -50, 90, 90, 3, KIT_BLACK);
    kit_draw_text(&p, -10, -3, 9, KIT_LEFT, KIT_INK, "clipped \xc3\xa4 text that is too long");
    kit_draw_rect(&p, -5, -5, 2, 2, 0xff0000u, 1);
    kit_draw_rect(&p, 5, 5, 1000, 1000, 0x00ff00u, 1);
    kit_draw_disc(&p, 1e7, 1e7, 3, KIT_INK);
    CHECK(p.rgb[0] > 200 && p.rgb[(9 * 20 + 19) * 3 + 1] > 200);
    kit_draw_picture(&p, &stamp, -25, -25);
    CHECK(p.rgb[(4 * 20 + 4) * 3] == 0 && p.rgb[(5 * 20 + 19) * 3 + 1] == 255);
    kit_draw_picture(&p, &stamp, 15, 8);
    kit_draw_picture(&p, &stamp, 400, 8);
    CHECK(p.rgb[(9 * 20 + 19) * 3 + 1] == 0);
    CHECK(kit_text_width("iii", 9) < kit_text_width("mmm", 9));
    CHECK(!(kit_text_width("", 9) > 0));
    kit_picture_free(&stamp);
    kit_picture_free(&p);
}

/* How much more red than blue a cell of a picture is, summed. */
static double redness(const kit_picture *p, int x0, int y0, int x1, int y1)
{
    double sum = 0;
    for (int y = y0; y < y1; y++) {
        for (int x = x0; x < x1; x++) {
            const unsigned char *rgb = p->rgb + 3 * (y * p->w + x);
            sum += rgb[0] - rgb[2];
        }
    }
    return sum;
}

/* A map that is positive on its left and negative on its right shows red left and blue right. */
static void test_sheet(void)
{
    static const char *const column[] = { "a map" };
    const xg_real value[4] = { 1, -1, 1, (xg_real)-0.9 };
    kit_picture in, page;
    kit_map map = { value, 2, 2, "EPG 0.5" };
    xg_box box = { 2, 2, 6, 6 };
    kit_sheet_row row = { "row", NULL, "input", &box, 1, &map };
    kit_sheet sheet = { "title", "note", column, 1, &row, 1, 160, 0 };
    xg_error error = no_error();
    CHECK(!kit_sheet_draw(&sheet, &page, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "no picture");
    REQUIRE(kit_picture_new(&in, 8, 8, 0x808080u, NULL));
    row.picture = &in;
    REQUIRE(kit_sheet_draw(&sheet, &page, NULL));
    CHECK(page.w > 2 * 160 && page.h > 160);
    int left = page.w, right = 0;           /* of the coloured cell, found by its colours */
    for (int x = 0; x < page.w; x++) {
        double r = redness(&page, x, 100, x + 1, 240);
        if (r > 3000 && x < left) left = x;
        if (r < -3000) right = x;
    }
    CHECK(right - left > 140 && right - left <= 160);
    kit_picture_free(&page);
    kit_picture_free(&in);
    CHECK(kit_diverging(0) == 0xf7f7f7u && kit_diverging(5) == kit_diverging(1));
    CHECK((kit_diverging(1) >> 16) > (kit_diverging(1) & 255));
    CHECK((kit_diverging(-1) >> 16) < (kit_diverging(-1) & 255));
    CHECK(kit_diverging((double)NAN) == 0xf7f7f7u);
}

static void test_chart(void)
{
    double y[3] = { 0.1, 0.5, (double)NAN }, bars[4] = { 1, 2, 3, 4 };
    static const char *const names[2] = { "one", "two" };
    kit_line line = { "run", NULL, y, NULL, 3, 0, true };
    kit_panel panel[2];
    kit_picture page;
    xg_error error = no_error();
    memset(panel, 0, sizeof panel);
    panel[0].line = &line;
    panel[0].lines = 1;
    panel[1].label = panel[1].series = names;
    panel[1].bar = bars;
    panel[1].groups = panel[1].bars = 2;
    REQUIRE(kit_chart_draw("title", panel, 2, 0, 0, &page, NULL));
    int blue = 0, orange = 0;
    for (int i = 0; i < page.w * page.h; i++) {
        blue += page.rgb[3 * i] < 80 && page.rgb[3 * i + 2] > 150;
        orange += page.rgb[3 * i] > 200 && page.rgb[3 * i + 2] < 60;
    }
    CHECK(blue > 3000 && orange > 5000);
    kit_picture_free(&page);
    CHECK(!kit_chart_draw("title", panel, 0, 0, 0, &page, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
}

/* ---------------------------------------------------------------------------- log and tables -- */

static void read_back(const char *name, char *out, size_t size)
{
    char path[256];
    unsigned char *bytes = NULL;
    size_t count = 0;
    out[0] = '\0';
    REQUIRE(kit_read_file(in_scratch(name, path), 100000, &bytes, &count, NULL));
    snprintf(out, size, "%s", (char *)bytes);
    free(bytes);
}

static void log_epoch(kit_log *log, double epoch, double loss, const char *note)
{
    kit_log_number(log, "epoch", epoch);
    kit_log_number(log, "loss", loss);
    if (note != NULL) kit_log_text(log, "note", note);
    CHECK(kit_log_row(log, NULL));
}

static void test_log_resumes_without_half_lines(void)
{
    static const char *const column[] = { "epoch", "loss", "note" };
    char folder[256], text[1000], path[256];
    kit_log log;
    xg_error error = no_error();
    in_scratch("log/run", folder);
    REQUIRE(kit_log_open(&log, folder, "train", column, 3, -1, &error));
    log_epoch(&log, 1, 0.5, "a \"b\", c\nd");
    log_epoch(&log, 2, (double)NAN, NULL);
    log_epoch(&log, 3, 0.25, "late");
    CHECK(kit_log_close(&log, NULL));
    read_back("log/run/train.csv", text, sizeof text);
    CHECK(strcmp(text, "epoch,loss,note\n1,0.5,\"a \"\"b\"\", c d\"\n2,,\n3,0.25,late\n") == 0);
    read_back("log/run/train.jsonl", text, sizeof text);
    CHECK(strcmp(text, "{\"epoch\": 1, \"loss\": 0.5, \"note\": \"a \\\"b\\\", c d\"}\n"
                       "{\"epoch\": 2, \"loss\": null}\n"
                       "{\"epoch\": 3, \"loss\": 0.25, \"note\": \"late\"}\n") == 0);
    /* Killed while it wrote a line of epoch 4; the checkpoint is of epoch 2. */
    FILE *half = fopen(in_scratch("log/run/train.csv", path), "ab");
    REQUIRE(half != NULL);
    fputs("4,0.1", half);
    fclose(half);
    REQUIRE(kit_log_open(&log, folder, "train", column, 3, 2, &error));
    log_epoch(&log, 3, 0.125, NULL);
    CHECK(kit_log_close(&log, NULL));
    read_back("log/run/train.csv", text, sizeof text);
    CHECK(strcmp(text, "epoch,loss,note\n1,0.5,\"a \"\"b\"\", c d\"\n2,,\n3,0.125,\n") == 0);
    read_back("log/run/train.jsonl", text, sizeof text);
    CHECK(strstr(text, "\"loss\": 0.125}\n") != NULL && strstr(text, "late") == NULL);
    CHECK(!kit_log_open(&log, folder, "train", column, 2, 3, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "other columns");
    error = no_error();
    REQUIRE(kit_log_open(&log, folder, "train", column, 3, 3, NULL));
    kit_log_number(&log, "speed", 1);
    CHECK(!kit_log_row(&log, &error));
    CHECK_ERROR(&error, XG_ERR_NAME);
    CHECK(kit_log_close(&log, NULL));
}

static void test_table(void)
{
    kit_table table;
    char path[256], text[400];
    memset(&table, 0, sizeof table);
    kit_table_cell(&table, "run");
    kit_table_cell(&table, "accuracy");
    kit_table_end_row(&table);
    kit_table_cell(&table, "plain");
    kit_table_cell(&table, "%.1f", 8.25);
    kit_table_end_row(&table);
    write_text("table.txt", "");
    FILE *out = fopen(in_scratch("table.txt", path), "w");
    REQUIRE(out != NULL);
    CHECK(kit_table_print(&table, out, false));
    CHECK(kit_table_print(&table, out, true));
    kit_table_cell(&table, "short");
    kit_table_end_row(&table);
    CHECK(!kit_table_print(&table, out, false));
    fclose(out);
    read_back("table.txt", text, sizeof text);
    CHECK(strcmp(text, "run    accuracy\n-----  --------\nplain       8.2\n"
                       "| run   | accuracy |\n|-------|---------:|\n| plain |      8.2 |\n") == 0);
    kit_table_free(&table);
}

static void test_progress(void)
{
    char path[256], text[600];
    kit_progress p;
    write_text("progress.txt", "");
    FILE *out = fopen(in_scratch("progress.txt", path), "w");
    REQUIRE(out != NULL);
    kit_progress_start(&p, out, "train", 10, 40);
    CHECK(!p.live);                         /* a file is no terminal */
    kit_progress_step(&p, 11, "too early to be shown");
    p.every = 0;
    kit_progress_step(&p, 20, "loss %.2f", 0.5);
    kit_progress_end(&p, 40, NULL);
    fclose(out);
    read_back("progress.txt", text, sizeof text);
    CHECK(strstr(text, "train [##########..........] 20/40  50 %") == text);
    CHECK(strstr(text, "loss 0.50\n") != NULL && strstr(text, "early") == NULL);
    CHECK(strstr(text, "40/40 100 %") != NULL && strstr(text, "in all\n") != NULL);
}

/* ----------------------------------------------------------------------------------- threads -- */

typedef struct count_job {
    kit_pool *pool;
    int       seen[500];           /* how often each task ran                                     */
    int       busy[8];             /* is this worker in a task?                                   */
    int       clashes;             /* two tasks with one worker number at the same time           */
    int       inner;
} count_job;

static void count_inner(void *context, int task, int worker)
{
    count_job *job = (count_job *)context;
    (void)task;
    (void)worker;
    __atomic_add_fetch(&job->inner, 1, __ATOMIC_SEQ_CST);
}

static void count_task(void *context, int task, int worker)
{
    count_job *job = (count_job *)context;
    if (worker < 0 || worker >= 8 || __atomic_exchange_n(&job->busy[worker], 1, __ATOMIC_SEQ_CST)) {
        __atomic_add_fetch(&job->clashes, 1, __ATOMIC_SEQ_CST);
        return;
    }
    __atomic_add_fetch(&job->seen[task], 1, __ATOMIC_SEQ_CST);
    if (task % 50 == 0) kit_pool_run(job->pool, 3, count_inner, job);    /* nested: serial */
    __atomic_store_n(&job->busy[worker], 0, __ATOMIC_SEQ_CST);
}

static void test_pool_runs_every_task_once(void)
{
    const struct timespec nap = { 0, 2000000 };
    for (int threads = 1; threads <= 5; threads++) {
        kit_pool *pool = kit_pool_new(threads, NULL);
        REQUIRE(pool != NULL && kit_pool_threads(pool) == threads);
        int wrong = 0;
        for (int round = 0; round < 300; round++) {
            count_job job;
            int tasks = round * 7 % 500;
            memset(&job, 0, sizeof job);
            job.pool = pool;
            kit_pool_run(pool, tasks, count_task, &job);
            for (int i = 0; i < 500; i++) wrong += job.seen[i] != (i < tasks ? 1 : 0);
            wrong += job.clashes + (job.inner != 3 * ((tasks + 49) / 50));
            if (round % 100 == 0) nanosleep(&nap, NULL);    /* let the workers fall asleep */
        }
        CHECK(wrong == 0);
        kit_pool_free(pool);
    }
    kit_pool_free(NULL);
    CHECK(kit_pool_threads(NULL) == 1);
    xg_error error = no_error();
    CHECK(kit_pool_new(-1, &error) == NULL);
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
}

static void *run_rounds(void *argument)
{
    kit_pool *pool = (kit_pool *)argument;
    size_t wrong = 0;
    for (int round = 0; round < 200; round++) {
        count_job job;
        memset(&job, 0, sizeof job);
        job.pool = pool;
        kit_pool_run(pool, 40, count_task, &job);
        for (int i = 0; i < 40; i++) wrong += job.seen[i] != 1;
        wrong += (size_t)job.clashes;
    }
    return (char *)argument + wrong;        /* where it was asked to, if nothing went wrong */
}

/* Two threads may use one pool at the same time: one of them then works alone. */
static void test_pool_is_shared(void)
{
    kit_pool *pool = kit_pool_new(3, NULL);
    pthread_t other;
    void *result = NULL;
    REQUIRE(pool != NULL);
    REQUIRE(pthread_create(&other, NULL, run_rounds, pool) == 0);
    CHECK(run_rounds(pool) == (void *)pool);
    pthread_join(other, &result);
    CHECK(result == (void *)pool);
    kit_pool_free(pool);
}

/* The library computes the same bits on one thread and on the pool. */
static void test_pool_serves_the_library(void)
{
    xg_real one[64], many[64];
    for (int pass = 0; pass < 2; pass++) {
        xg_config config;
        kit_pool *pool = pass == 1 ? kit_pool_new(3, NULL) : NULL;
        memset(&config, 0, sizeof config);
        kit_pool_config(pool, &config);
        CHECK(pass == 0 || config.workers == 3);
        xg_tape *tape = xg_tape_new(&config);
        REQUIRE(tape != NULL);
        xg_rng rng = xg_rng_seed(6);
        xg_window window;
        memset(&window, 0, sizeof window);
        window.pad = 1;
        xg_tensor *x = xg_randn(tape, xg_shape4(4, 8, 20, 20), &rng);
        xg_tensor *w = xg_randn(tape, xg_shape4(16, 8, 3, 3), &rng);
        xg_tensor *y = xg_global_avgpool(xg_relu(xg_conv2d(x, w, window)));
        CHECK_OK(tape);
        CHECK(xg_read(y, pass == 0 ? one : many, 64) == 64);
        xg_tape_free(tape);
        kit_pool_free(pool);
    }
    CHECK(memcmp(one, many, sizeof one) == 0);
}

/* Small and large pieces can be written to the last byte, and a tape lives on them. */
static void test_memory_serves_the_library(void)
{
    const size_t sizes[] = { 1, 4096, ((size_t)4 << 20) + 1, (size_t)9 << 20 };
    xg_config config;
    memset(&config, 0, sizeof config);
    kit_memory_config(&config);
    for (int i = 0; i < 4; i++) {
        char *memory = (char *)config.alloc(config.memory_user, sizes[i]);
        REQUIRE(memory != NULL && (uintptr_t)memory % 16 == 0);
        memset(memory, 1, sizes[i]);
        config.release(config.memory_user, memory);
    }
    xg_tape *tape = xg_tape_new(&config);
    REQUIRE(tape != NULL);
    CHECK(xg_item(xg_sum(xg_full(tape, xg_shape4(8, 8, 256, 256), 0.5))) == 8 * 8 * 256 * 256 / 2);
    CHECK_OK(tape);
    xg_tape_free(tape);
}

/* ------------------------------------------------------------------------------ command line -- */

typedef struct options {
    int epochs, loss;
    double rate;
    const char *data;
    bool quick;
    uint64_t seed;
} options;

static kit_args_result parse(options *o, int argc, const char *const *words_in, int *count,
                             const char **words, xg_error *error)
{
    kit_arg args[] = {
        { "epochs", 'e', KIT_ARG_INT,    NULL, "N", "passes over the data" },
        { "rate",   0,   KIT_ARG_NUMBER, NULL, "X", "learning rate" },
        { NULL,     0,   KIT_ARG_HEADING, NULL, NULL, "Data" },
        { "data",   'd', KIT_ARG_TEXT,   NULL, "FOLDER", "where the pictures are" },
        { "loss",   0,   KIT_ARG_CHOICE, NULL, "energy|l1|ppce", "guidance" },
        { "quick",  'q', KIT_ARG_FLAG,   NULL, NULL, "seconds, not minutes" },
        { "seed",   0,   KIT_ARG_SEED,   NULL, "N", "of every random choice" },
    };
    char *argv[16];
    args[0].value = &o->epochs;
    args[1].value = &o->rate;
    args[3].value = &o->data;
    args[4].value = &o->loss;
    args[5].value = &o->quick;
    args[6].value = &o->seed;
    for (int i = 0; i < argc; i++) argv[i] = kit_copy_text(words_in[i]);
    argv[argc] = NULL;
    kit_args_result result = kit_args_read(argc, argv, args, 7, "usage", NULL, words, 2, count,
                                           error);
    if (o->data != NULL) CHECK(strcmp(o->data, "x") == 0);
    o->data = NULL;
    if (*count > 0) CHECK(strcmp(words[0], "file") == 0);
    for (int i = 0; i < argc; i++) free(argv[i]);
    return result;
}

static void test_args(void)
{
    static const char *const good[] = { "t", "-e", "12", "file", "--rate=0.5", "--data", "x", "-q",
                                        "--loss", "ppce", "--seed", "18446744073709551615" };
    static const struct { const char *words[3]; int count; const char *says; } bad[] = {
        { { "t", "--epochs", "many" }, 3, "--epochs takes a whole number, not 'many'" },
        { { "t", "--rate=nan" },       2, "--rate takes a number" },
        { { "t", "--epoch_s", "1" },   3, "--epoch_s" },
        { { "t", "--epochs" },         2, "--epochs needs a value" },
        { { "t", "--loss", "l2" },     3, "one of energy|l1|ppce, not 'l2'" },
        { { "t", "--seed", "-1" },     3, "--seed takes a whole number" },
        { { "t", "-x" },               2, "-x" },
    };
    options o;
    const char *words[2];
    int count = 0;
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    CHECK(parse(&o, 12, good, &count, words, &error) == KIT_ARGS_OK);
    CHECK(o.epochs == 12 && o.quick && o.loss == 2 && count == 1 && o.seed == UINT64_MAX);
    CHECK_NEAR(o.rate, 0.5, 1e-12);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error = no_error();
        count = 0;
        CHECK(parse(&o, bad[i].count, bad[i].words, &count, words, &error) == KIT_ARGS_BAD);
        CHECK_SAYS(error, XG_ERR_ARGUMENT, bad[i].says);
    }
}

#define TESTS                                                                                     \
    TEST(test_errors_keep_the_first) TEST(test_files) TEST(test_human_numbers)                    \
    TEST(test_csv_dialects) TEST(test_csv_blanks_separate) TEST(test_csv_errors)                  \
    TEST(test_png_round_trip) TEST(test_normalisation_round_trip)                                 \
    TEST(test_resize_keeps_the_mean) TEST(test_hostile_pictures) TEST(test_drawing_is_clipped)    \
    TEST(test_sheet) TEST(test_chart) TEST(test_log_resumes_without_half_lines) TEST(test_table)  \
    TEST(test_progress) TEST(test_pool_runs_every_task_once) TEST(test_pool_is_shared)            \
    TEST(test_pool_serves_the_library) TEST(test_memory_serves_the_library) TEST(test_args)       \
    remove_scratch();

TEST_MAIN(TESTS)
