/* test_data.c - the kit: scenes, readers of folders, order, batches; on made-up and real data. */
#define _POSIX_C_SOURCE 200809L
#include "scratch.h"

/* ------------------------------------------------------------------------------------ scenes -- */

/* Every mask is 0 or 1, not empty, inside its box, and the box is tight. */
static void check_masks(const kit_set *set)
{
    int wrong = 0;
    for (int i = 0; i < set->count; i++) {
        const xg_real *mask = set->masks + (size_t)i * (size_t)(set->h * set->w);
        int inside = 0, edge[4] = { 0, 0, 0, 0 };
        xg_box b = set->box[i];
        for (int y = 0; y < set->h; y++) {
            for (int x = 0; x < set->w; x++) {
                double m = (double)mask[y * set->w + x];
                bool in_box = x >= b.x0 && x < b.x1 && y >= b.y0 && y < b.y1;
                if (m != 0 && m != 1) wrong++;
                if (m > 0 && !in_box) wrong++;
                if (!(m > 0)) continue;
                inside++;
                edge[0] += x < b.x0 + 1;
                edge[1] += y < b.y0 + 1;
                edge[2] += x >= b.x1 - 1;
                edge[3] += y >= b.y1 - 1;
            }
        }
        if (inside == 0 || !edge[0] || !edge[1] || !edge[2] || !edge[3]) wrong++;
        if (b.x0 < 0 || b.y0 < 0 || b.x1 > set->w || b.y1 > set->h) wrong++;
    }
    CHECK(wrong == 0);
}

static void test_shapes_have_masks_and_balance(void)
{
    for (int kind = 0; kind < 4; kind++) {
        for (int variant = 0; variant < 4; variant++) {
            kit_shape_options o;
            kit_set set;
            xg_rng rng = xg_rng_seed((uint64_t)(kind + 10 * variant));
            memset(&o, 0, sizeof o);
            o.kind = (kit_shapes)kind;
            o.rotation = variant == 1 ? 40 : 0;
            o.outline = variant == 2 ? 2 : 0;
            o.positive = variant == 3 ? 0.1 : 0.5;
            REQUIRE(kit_draw_shapes(&set, 60, &o, &rng, NULL));
            int positive = 0;
            for (int i = 0; i < 60; i++) positive += set.label[i];
            CHECK(positive == (variant == 3 ? 6 : 30));
            CHECK(set.classes == 2 && set.channels == 1 && set.h == 64 && set.annotated[0]);
            check_masks(&set);
            kit_set_free(&set);
        }
    }
}

/* The pentagon is part of its triangle, the head of its fox or cat, and the masks are the same. */
static void test_test_shapes_are_parts(void)
{
    for (int kind = 0; kind < 4; kind += 2) {
        kit_shape_options o;
        kit_set whole, part;
        memset(&o, 0, sizeof o);
        xg_rng a = xg_rng_seed(5), b = xg_rng_seed(5);
        o.kind = (kit_shapes)kind;
        REQUIRE(kit_draw_shapes(&whole, 40, &o, &a, NULL));
        o.kind = (kit_shapes)(kind + 1);
        REQUIRE(kit_draw_shapes(&part, 40, &o, &b, NULL));
        size_t count = 40 * 64 * 64, bright = 0, shared = 0, beyond = 0;
        for (size_t i = 0; i < count; i++) {
            bright += whole.pixels[i] > 0;
            shared += part.pixels[i] > 0 && whole.pixels[i] > 0;
            beyond += part.pixels[i] > 0 && !(whole.pixels[i] > 0);
        }
        CHECK(beyond == 0 && shared > 0 && shared < bright);
        CHECK(memcmp(whole.label, part.label, 40 * sizeof(int)) == 0);
        CHECK(memcmp(whole.masks, part.masks, count * sizeof(xg_real)) == 0);
        CHECK(a.state == b.state);
        kit_set_free(&whole);
        kit_set_free(&part);
    }
}

/* Up and down: the mean height of bright pixels lies below the middle of the box for class 1. */
static void test_triangles_point_where_labels_say(void)
{
    kit_set set;
    xg_rng rng = xg_rng_seed(2);
    REQUIRE(kit_draw_shapes(&set, 50, NULL, &rng, NULL));
    int right = 0;
    for (int i = 0; i < 50; i++) {
        double sum = 0, count = 0;
        for (int y = 0; y < 64; y++) {
            for (int x = 0; x < 64; x++) {
                if (!(set.pixels[(i * 64 + y) * 64 + x] > 0)) continue;
                sum += y + 0.5;
                count++;
            }
        }
        double middle = 0.5 * (set.box[i].y0 + set.box[i].y1);
        right += (sum / count > middle) == (set.label[i] == 1);
    }
    CHECK(right == 50);
    kit_set_free(&set);
}

/* Every placement of the spurious square, read back from the pictures. */
static void test_spurious_squares(void)
{
    for (int kind = 0; kind < 4; kind += 2) {
        for (int spurious = 0; spurious < 3; spurious++) {
            kit_shape_options o;
            kit_set set;
            xg_rng rng = xg_rng_seed(3);
            memset(&o, 0, sizeof o);
            o.kind = (kit_shapes)kind;
            o.spurious = (kit_spurious)spurious;
            REQUIRE(kit_draw_shapes(&set, 40, &o, &rng, NULL));
            int wrong = 0;
            for (int i = 0; i < 40; i++) {
                int grey = 0, left = 64, top = 64;
                for (int y = 0; y < 64; y++) {
                    for (int x = 0; x < 64; x++) {
                        if (fabs((double)set.pixels[(i * 64 + y) * 64 + x] - 0.5) > 0.01) continue;
                        grey++;
                        if (x < left) left = x;
                        if (y < top) top = y;
                    }
                }
                bool one = set.label[i] == 1;
                if (spurious == 0) wrong += grey != 0;
                else if (kind == KIT_FOX_CAT) wrong += left != (one ? 0 : 60) || top != 0;
                else if (spurious == 1) wrong += left != (one ? 0 : 60);
                else wrong += left != 0 || top != (one ? 60 : 0);
                if (spurious != 0 && grey != 16) wrong++;
            }
            CHECK(wrong == 0);
            kit_set_free(&set);
        }
    }
}

static void test_shape_errors(void)
{
    kit_shape_options o;
    kit_set set;
    xg_rng rng = xg_rng_seed(1);
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    o.half_max = 40;
    CHECK(!kit_draw_shapes(&set, 10, &o, &rng, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "do not fit");
    CHECK(set.pixels == NULL);
    error = no_error();
    memset(&o, 0, sizeof o);
    o.positive = 1.5;
    CHECK(!kit_draw_shapes(&set, 10, &o, &rng, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    error = no_error();
    CHECK(!kit_draw_shapes(&set, 0, NULL, &rng, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
}

/* Share of samples whose decoy has the label's colour. */
static double agreement(const kit_set *set)
{
    int same = 0;
    for (int i = 0; i < set->count; i++) {
        same += set->group[i] == set->label[i] * set->classes + set->label[i];
    }
    return (double)same / set->count;
}

static void test_decoy_rules(void)
{
    static const double expected[3] = { 1, 0.25, 0 };
    kit_set set[4];
    for (int rule = 0; rule < 4; rule++) {
        kit_decoy_options o;
        xg_rng rng = xg_rng_seed(7);
        memset(&o, 0, sizeof o);
        o.rule = (kit_decoy_rule)rule;
        REQUIRE(kit_draw_decoy(&set[rule], 800, &o, &rng, NULL));
        int seen[4] = { 0, 0, 0, 0 };
        for (int i = 0; i < 800; i++) seen[set[rule].label[i]]++;
        CHECK(seen[0] == 200 && seen[1] == 200 && seen[2] == 200 && seen[3] == 200);
        check_masks(&set[rule]);
    }
    for (int rule = 0; rule < 3; rule++) {
        CHECK_NEAR(agreement(&set[rule]), expected[rule], rule == 1 ? 0.06 : 1e-12);
    }
    /* The same generator draws the same objects whatever the rule. */
    size_t plane = 32 * 32;
    CHECK(memcmp(set[0].masks, set[1].masks, 800 * plane * sizeof(xg_real)) == 0);
    CHECK(memcmp(set[0].label, set[2].label, 800 * sizeof(int)) == 0);
    /* Where a scene has a decoy and its twin has none, they differ outside the object only. */
    size_t inside = 0, outside = 0;
    for (size_t i = 0; i < 800; i++) {
        for (size_t k = 0; k < plane; k++) {
            bool differs = false;
            for (size_t c = 0; c < 3; c++) {
                size_t at = (3 * i + c) * plane + k;
                differs = differs || set[0].pixels[at] < set[3].pixels[at]
                       || set[0].pixels[at] > set[3].pixels[at];
            }
            if (differs && set[0].masks[i * plane + k] > 0) inside++;
            else if (differs) outside++;
        }
    }
    CHECK(inside == 0 && outside > 800 * 20);
    for (int rule = 0; rule < 4; rule++) kit_set_free(&set[rule]);
}

static void test_decoy_options(void)
{
    kit_decoy_options o;
    kit_set set;
    xg_rng rng = xg_rng_seed(7);
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    o.broken = 0.4;
    o.classes = 6;
    o.size = 48;
    REQUIRE(kit_draw_decoy(&set, 1200, &o, &rng, NULL));
    CHECK(set.h == 48 && set.classes == 6 && set.groups == 36);
    CHECK_NEAR(agreement(&set), 0.6 + 0.4 / 6, 0.05);
    int low = 0;
    for (size_t i = 0; i < 1200 * 3 * 48 * 48; i++) {
        low += !(set.pixels[i] >= 0 && set.pixels[i] <= 1);
    }
    CHECK(low == 0);
    kit_set_free(&set);
    o.classes = 7;
    CHECK(!kit_draw_decoy(&set, 10, &o, &rng, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    error = no_error();
    o.classes = 4;
    o.decoy_radius = 0.3;
    CHECK(!kit_draw_decoy(&set, 10, &o, &rng, &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "radii");
    CHECK(strcmp(kit_decoy_class(3), "cross") == 0 && strcmp(kit_decoy_class(9), "?") == 0);
}

static void test_annotated_fraction(void)
{
    static bool a[4795], b[4795], c[4795];
    int in_a = 0, same = 0, in_both = 0;
    kit_annotate(a, 4795, 0.01, 0);
    kit_annotate(b, 4795, 0.01, 0);
    kit_annotate(c, 4795, 0.01, 1);
    for (int i = 0; i < 4795; i++) {
        in_a += a[i];
        same += a[i] == b[i];
        in_both += a[i] && c[i];
    }
    CHECK(in_a == 47);                      /* int(0.01 * 4795) */
    CHECK(same == 4795);
    CHECK(in_both < 10);                    /* half a one is expected of chance */
    kit_annotate(a, 10, 1.0, 3);
    for (int i = 0; i < 10; i++) CHECK(a[i]);
    kit_annotate(a, 10, 0.0, 3);
    for (int i = 0; i < 10; i++) CHECK(!a[i]);
}

/* ------------------------------------------------------------------------------------- order -- */

static void test_order_is_a_permutation_and_repeats(void)
{
    kit_order a, b;
    int out[8], seen[20], first[20], epoch_two[20], n, at = 0, sizes = 0;
    memset(seen, 0, sizeof seen);
    REQUIRE(kit_order_new(&a, NULL, 20, true, xg_rng_seed(4), NULL));
    REQUIRE(kit_order_new(&b, NULL, 20, true, xg_rng_seed(4), NULL));
    while ((n = kit_order_next(&a, 8, out)) > 0) {
        sizes = sizes * 10 + n;
        for (int i = 0; i < n; i++) {
            seen[out[i]]++;
            first[at++] = out[i];
        }
    }
    CHECK(sizes == 884 && at == 20 && a.epoch == 1);
    for (int i = 0; i < 20; i++) CHECK(seen[i] == 1);
    for (at = 0; (n = kit_order_next(&a, 8, epoch_two + at)) > 0; at += n) continue;
    CHECK(at == 20 && memcmp(first, epoch_two, sizeof first) != 0);
    for (int i = 0; i < 20; i++) CHECK(kit_order_next(&b, 1, out) == 1 && out[0] == first[i]);
    kit_order_free(&a);
    kit_order_free(&b);
    REQUIRE(kit_order_new(&a, NULL, 3, false, xg_rng_seed(4), NULL));
    CHECK(kit_order_next(&a, 8, out) == 3 && out[0] == 0 && out[1] == 1 && out[2] == 2);
    kit_order_free(&a);
}

static void test_order_resumes(void)
{
    static const int items[7] = { 3, 1, 4, 15, 9, 2, 6 };
    kit_order a, b;
    char text[96];
    int x[3], y[3];
    xg_error error = no_error();
    REQUIRE(kit_order_new(&a, items, 7, true, xg_rng_seed(8), NULL));
    for (int i = 0; i < 10; i++) kit_order_next(&a, 2, x);      /* into the third epoch */
    kit_order_save(&a, text);
    REQUIRE(kit_order_new(&b, items, 7, true, xg_rng_seed(0), NULL));
    REQUIRE(kit_order_restore(&b, text, NULL));
    for (int i = 0; i < 30; i++) {
        int n = kit_order_next(&a, 3, x), m = kit_order_next(&b, 3, y);
        CHECK(n == m && memcmp(x, y, (size_t)n * sizeof *x) == 0 && a.epoch == b.epoch);
    }
    kit_order_free(&b);
    CHECK(!kit_order_restore(&a, "nonsense", &error));
    CHECK_ERROR(&error, XG_ERR_FORMAT);
    error = no_error();
    CHECK(!kit_order_restore(&a, "8 samples, epoch 0, at 0, state 1", &error));
    CHECK_SAYS(error, XG_ERR_ARGUMENT, "7 now");
    kit_order_free(&a);
}

static void test_batch_from_set(void)
{
    kit_set set;
    kit_batch batch;
    xg_rng rng = xg_rng_seed(1);
    xg_error error = no_error();
    const int index[3] = { 5, 0, 5 }, beyond[1] = { 12 };
    REQUIRE(kit_draw_decoy(&set, 12, NULL, &rng, NULL));
    REQUIRE(kit_batch_new(&batch, 3, 3, 32, 32, NULL));
    set.annotated[0] = false;
    CHECK(kit_batch_from_set(&batch, &set, index, 3, NULL) && batch.count == 3);
    size_t size = 3 * 32 * 32;
    CHECK(memcmp(batch.pixels, set.pixels + 5 * size, size * sizeof(xg_real)) == 0);
    CHECK(memcmp(batch.pixels + size, set.pixels, size * sizeof(xg_real)) == 0);
    CHECK(memcmp(batch.masks + 2048, set.masks + 5 * 1024, 1024 * sizeof(xg_real)) == 0);
    CHECK(batch.label[0] == set.label[5] && batch.group[1] == set.group[0]);
    CHECK(batch.weight[0] > 0 && !(batch.weight[1] > 0) && batch.index[2] == 5);
    CHECK(!kit_batch_from_set(&batch, &set, beyond, 1, &error));
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    CHECK(!kit_batch_from_set(&batch, &set, index, 4, NULL));
    kit_batch_free(&batch);
    REQUIRE(kit_batch_new(&batch, 3, 1, 32, 32, NULL));
    CHECK(!kit_batch_from_set(&batch, &set, index, 3, NULL));
    kit_batch_free(&batch);
    kit_set_free(&set);
}

/* ----------------------------------------------------------------------------------- readers -- */

static void test_class_folders(void)
{
    char path[256], name[64];
    kit_photos photos;
    kit_photos_options o;
    xg_error error = no_error();
    memset(&o, 0, sizeof o);
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "classes/%s/%d.png", i % 2 ? "cat" : "ant", i);
        write_picture(name, 8, 4, i % 2 ? 0xff0000u : 0x0000ffu);
    }
    write_text("classes/cat/readme.txt", "not a picture");
    write_text("classes/boxes.csv", "image,what,x0,y0,x1,y1\ncat/1.png,a,0,0,4,4\n"
               "ant/0.png,b,1,1,2,2\ncat/1.png,c,4,2,8,4\n");
    o.size = 16;
    o.val = 0.2;
    o.test = 0.4;
    REQUIRE(kit_photos_open(&photos, in_scratch("classes", path), &o, &error));
    CHECK(photos.count == 10 && photos.classes == 2);
    CHECK(strcmp(photos.class_name[0], "ant") == 0 && strcmp(photos.class_name[1], "cat") == 0);
    CHECK(kit_photos_split(&photos, KIT_VAL, NULL) == 2);
    CHECK(kit_photos_split(&photos, KIT_TEST, NULL) == 4);
    CHECK(kit_photos_split(&photos, KIT_TRAIN, NULL) == 4);
    CHECK(photos.boxes == 3);
    for (int i = 0; i < 10; i++) {
        const kit_photo *p = &photos.photo[i];
        bool first_cat = strcmp(p->name, "cat/1.png") == 0;
        CHECK(p->label == (strncmp(p->name, "cat", 3) == 0));
        CHECK(p->boxes == (first_cat ? 2 : strcmp(p->name, "ant/0.png") == 0 ? 1 : 0));
        if (first_cat) CHECK(strcmp(photos.box_name[p->first_box + 1], "c") == 0);
    }
    kit_photos again;
    REQUIRE(kit_photos_open(&again, path, &o, NULL));
    for (int i = 0; i < 10; i++) CHECK(photos.photo[i].split == again.photo[i].split);
    kit_photos_free(&again);
    kit_photos_free(&photos);
    write_text("classes/boxes.csv", "image,what,x0,y0,x1,y1\ndog/1.png,a,0,0,4,4\n");
    CHECK(!kit_photos_open(&photos, path, &o, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "boxes.csv line 2: there is no picture 'dog/1.png'");
    error = no_error();
    write_text("classes/boxes.csv", "image,what,x0,y0,x1,y1\ncat/1.png,a,0,0,0,4\n");
    CHECK(!kit_photos_open(&photos, path, &o, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "is empty");
    error = no_error();
    CHECK(!kit_photos_open(&photos, in_scratch("nowhere", path), NULL, &error));
    CHECK_SAYS(error, XG_ERR_IO, "nowhere");
}

static void test_split_folders(void)
{
    char path[256];
    kit_photos photos;
    xg_error error = no_error();
    write_picture("splits/train/a/1.png", 4, 4, 0);
    write_picture("splits/train/b/1.png", 4, 4, 0);
    write_picture("splits/test/b/7.png", 4, 4, 0);
    REQUIRE(kit_photos_open(&photos, in_scratch("splits", path), NULL, &error));
    CHECK(photos.count == 3 && photos.photo[2].split == KIT_TEST && photos.photo[2].label == 1);
    kit_photos_free(&photos);
    write_picture("splits/test/c/7.png", 4, 4, 0);
    CHECK(!kit_photos_open(&photos, path, NULL, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "test/c");
}

static const char bird_list[] = "img_id,img_filename,y,split,place,place_filename\r\n"
    "2,x/a.png,1,0,1,\r\n7,x/b.png,0,0,0,\r\n9,x/c.png,1,2,0,\r\n";

static void write_birds(const char *list, const char *boxes)
{
    write_picture("birds/x/a.png", 20, 10, 0x102030u);
    write_picture("birds/x/b.png", 20, 10, 0xffffffu);
    write_picture("birds/x/c.png", 20, 10, 0x000000u);
    write_text("birds/metadata.csv", list);
    write_text("birds/bounding_boxes.txt", boxes);
}

static void test_waterbirds_layout(void)
{
    char path[256];
    kit_photos photos;
    kit_photos_options o;
    memset(&o, 0, sizeof o);
    write_birds(bird_list, "1 0 0 5 5\n9 10.0 5.0 10.0 5.0\n2 0.0 0.0 10.0 10.0\n");
    REQUIRE(kit_photos_open(&photos, in_scratch("birds", path), NULL, NULL));
    CHECK(photos.count == 3 && photos.groups == 4 && photos.classes == 2 && photos.boxes == 2);
    CHECK(photos.photo[0].label == 1 && photos.photo[0].place == 1 && photos.photo[0].group == 3);
    CHECK(photos.photo[2].label == 1 && photos.photo[2].group == 2);
    CHECK(photos.photo[2].split == KIT_TEST && photos.photo[1].boxes == 0);
    CHECK_NEAR(photos.box[photos.photo[2].first_box].x1, 20, 1e-12);
    CHECK(strcmp(photos.class_name[1], "waterbird") == 0);
    kit_photos_free(&photos);
    o.place_task = true;
    REQUIRE(kit_photos_open(&photos, path, &o, NULL));
    CHECK(photos.photo[2].label == 0 && photos.photo[2].group == 2);
    CHECK(strcmp(photos.class_name[1], "water") == 0);
    kit_photos_free(&photos);
}

static void test_waterbirds_errors(void)
{
    static const struct { const char *list, *boxes, *says; } bad[] = {
        { "img_id,img_filename,y,split\n2,x/a.png,1,0\n", "", "no column 'place'" },
        { "img_id,img_filename,y,split,place\n2,x/a.png,2,0,1\n", "",
          "metadata.csv line 2: column 'y' should be a whole number from 0 to 1, not '2'" },
        { "img_id,img_filename,y,split,place\n2,x/z.png,1,0,1\n", "",
          "line 2: there is no picture" },
        { bird_list, "2 0.0 0.0 ten 10.0\n", "bounding_boxes.txt line 1: column 4" },
        { bird_list, "2 0.0 0.0 10.0\n", "five columns" },
        { "img_id,img_filename,y,split,place\n", "", "holds no pictures" },
    };
    char path[256];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kit_photos photos;
        xg_error error = no_error();
        write_birds(bad[i].list, bad[i].boxes);
        CHECK(!kit_photos_open(&photos, in_scratch("birds", path), NULL, &error));
        CHECK(error.code != XG_ERR_OK && strstr(error.text, bad[i].says) != NULL);
        if (strstr(error.text, bad[i].says) == NULL) printf("      it is: %s\n", error.text);
        CHECK(photos.photo == NULL);
    }
}

/* Left half of the mask is the mirror of the right: a box in one corner, flipped or not. */
static void test_batch_from_photos(void)
{
    char path[256];
    kit_photos photos;
    kit_photos_options o;
    kit_view view;
    kit_batch batch;
    const int index[3] = { 0, 1, 2 };
    memset(&o, 0, sizeof o);
    memset(&view, 0, sizeof view);
    write_birds(bird_list, "2 0.0 0.0 10.0 5.0\n9 10 5 10 5\n");
    o.size = 16;
    REQUIRE(kit_photos_open(&photos, in_scratch("birds", path), &o, NULL));
    REQUIRE(kit_batch_new(&batch, 4, 3, 16, 16, NULL));
    REQUIRE(kit_photos_annotate(&photos, 0.5, 0, NULL));        /* one of the two of training */
    kit_pool *pool = kit_pool_new(2, NULL);
    REQUIRE(kit_batch_from_photos(&batch, &photos, index, 3, &view, NULL, pool, NULL));
    CHECK_NEAR((double)batch.pixels[0] * 255, 0x10, 1e-4);
    CHECK_NEAR((double)batch.pixels[512] * 255, 0x30, 1e-4);
    CHECK_NEAR((double)batch.pixels[768] * 255, 255, 1e-4);
    double sum[3] = { 0, 0, 0 };
    for (int i = 0; i < 768; i++) sum[i / 256] += (double)batch.masks[i];
    CHECK_NEAR(sum[0], 64, 1e-9);           /* 20 x 10 to 16 x 16: columns 0..7, rows 0..7 */
    CHECK(batch.masks[0] > 0 && !(batch.masks[8] > 0) && !(batch.masks[8 * 16] > 0));
    CHECK_NEAR(sum[1], 0, 1e-9);
    CHECK_NEAR(sum[2], 49, 1e-9);           /* columns and rows 8..14: the last is never inside */
    CHECK(!(batch.weight[1] > 0) && batch.weight[2] > 0);       /* no box; a box of the test */
    CHECK(photos.photo[0].w == 20 && photos.photo[0].pixels != NULL);
    view.outside = true;
    view.all_boxes = true;
    REQUIRE(kit_batch_from_photos(&batch, &photos, index, 3, &view, NULL, pool, NULL));
    CHECK(!(batch.masks[0] > 0) && batch.masks[8] > 0 && batch.weight[0] > 0);
    kit_pool_free(pool);
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

/* A picture whose left half is red, with a box round that half: whatever the view cuts and mirrors,
 * the mask stays on the red (to one pixel, where the half ends). */
static void test_views_move_masks_with_pictures(void)
{
    char path[256];
    kit_picture p;
    kit_photos photos;
    kit_photos_options o;
    kit_view view;
    kit_batch batch, twin;
    const int index[1] = { 0 };
    memset(&o, 0, sizeof o);
    memset(&view, 0, sizeof view);
    write_text("flat/half.png", "");
    REQUIRE(kit_picture_new(&p, 40, 20, KIT_BLACK, NULL));
    kit_draw_rect(&p, 0, 0, 20, 20, 0xff0000u, 1);
    REQUIRE(kit_picture_save(&p, in_scratch("flat/half.png", path), NULL));
    kit_picture_free(&p);
    write_text("flat/boxes.csv", "image,what,x0,y0,x1,y1\nhalf.png,red,0,0,20,20\n");
    o.size = 32;
    REQUIRE(kit_photos_open(&photos, in_scratch("flat", path), &o, NULL));
    CHECK(photos.photo[0].label == -1 && photos.photo[0].split == KIT_TEST);
    REQUIRE(kit_batch_new(&batch, 1, 3, 32, 32, NULL));
    REQUIRE(kit_batch_new(&twin, 1, 3, 32, 32, NULL));
    view.flip = true;
    view.crop = 0.4;
    int mirrored = 0, wrong = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        xg_rng a = xg_rng_seed(seed), b = xg_rng_seed(seed);
        REQUIRE(kit_batch_from_photos(&batch, &photos, index, 1, &view, &a, NULL, NULL));
        REQUIRE(kit_batch_from_photos(&twin, &photos, index, 1, &view, &b, NULL, NULL));
        CHECK(memcmp(batch.pixels, twin.pixels, 3 * 1024 * sizeof(xg_real)) == 0);
        for (int y = 0; y < 30; y++) {
            for (int x = 1; x < 30; x++) {
                const xg_real *red = batch.pixels + y * 32 + x;
                bool all_red = red[-1] > 0.99 && red[0] > 0.99 && red[1] > 0.99;
                bool no_red = red[-1] < 0.01 && red[0] < 0.01 && red[1] < 0.01;
                bool inside = batch.masks[y * 32 + x] > 0;
                wrong += (all_red && !inside) || (no_red && inside);
            }
        }
        mirrored += batch.pixels[31] > batch.pixels[0];
    }
    CHECK(wrong == 0);
    CHECK(mirrored > 5 && mirrored < 35);
    kit_batch_free(&batch);
    kit_batch_free(&twin);
    kit_photos_free(&photos);
}

static void test_damaged_photograph_is_named(void)
{
    char path[256];
    kit_photos photos;
    kit_batch batch;
    const int index[2] = { 0, 1 };
    xg_error error = no_error();
    write_picture("damaged/good.png", 128, 128, 0);
    write_text("damaged/bad.png", "this is no picture");
    REQUIRE(kit_photos_open(&photos, in_scratch("damaged", path), NULL, NULL));
    REQUIRE(kit_batch_new(&batch, 2, 3, 128, 128, NULL));
    CHECK(!kit_batch_from_photos(&batch, &photos, index, 2, NULL, NULL, NULL, &error));
    CHECK_SAYS(error, XG_ERR_FORMAT, "bad.png");
    CHECK(batch.count == 0);
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

/* --------------------------------------------------------------------------------- real data -- */

static void test_real_waterbirds(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/waterbirds100", test_data());
    if (!kit_is_folder(path)) SKIP("waterbirds100 is not there (set XG_DATA)");
    kit_photos photos;
    kit_view view;
    kit_batch batch;
    xg_error error = no_error();
    REQUIRE(kit_photos_open(&photos, path, NULL, &error));
    CHECK(kit_photos_split(&photos, KIT_TRAIN, NULL) == 4795);
    CHECK(kit_photos_split(&photos, KIT_VAL, NULL) == 1199);
    CHECK(kit_photos_split(&photos, KIT_TEST, NULL) == 1000);
    int in_train[4] = { 0, 0, 0, 0 }, in_test[4] = { 0, 0, 0, 0 }, boxed = 0;
    for (int i = 0; i < photos.count; i++) {
        if (photos.photo[i].split == KIT_TRAIN) in_train[photos.photo[i].group]++;
        if (photos.photo[i].split == KIT_TEST) in_test[photos.photo[i].group]++;
        boxed += photos.photo[i].boxes == 1;
    }
    CHECK(in_train[0] == 3694 && in_train[1] == 0 && in_train[2] == 0 && in_train[3] == 1101);
    CHECK(in_test[0] == 242 && in_test[1] == 258 && in_test[2] == 266 && in_test[3] == 234);
    CHECK(boxed == photos.count);
    REQUIRE(kit_photos_annotate(&photos, 0.01, 0, NULL));
    int annotated = 0;
    for (int i = 0; i < photos.count; i++) {
        annotated += photos.photo[i].split == KIT_TRAIN && photos.photo[i].annotated;
    }
    CHECK(annotated == 47);
    memset(&view, 0, sizeof view);
    view.norm = KIT_NORM_IMAGENET;
    view.all_boxes = true;
    int index[32];
    for (int i = 0; i < 32; i++) index[i] = 200 * i;
    REQUIRE(kit_batch_new(&batch, 32, 3, 128, 128, NULL));
    kit_pool *pool = kit_pool_new(2, NULL);
    REQUIRE(kit_batch_from_photos(&batch, &photos, index, 32, &view, NULL, pool, &error));
    double share = 0;
    for (size_t i = 0; i < 32 * 128 * 128; i++) share += (double)batch.masks[i] / (32 * 128 * 128);
    CHECK(share > 0.2 && share < 0.5);      /* the median box covers 32 % */
    CHECK(photos.kept_bytes == 32 * 3 * 128 * 128);
    kit_pool_free(pool);
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

static void test_real_demo_images(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/demo-images", test_data());
    if (!kit_is_folder(path)) SKIP("demo-images is not there (set XG_DATA)");
    kit_photos photos;
    kit_batch batch;
    int index[9];
    xg_error error = no_error();
    REQUIRE(kit_photos_open(&photos, path, NULL, &error));
    CHECK(photos.count == 9 && photos.boxes == 7);
    REQUIRE(kit_batch_new(&batch, 9, 3, 128, 128, NULL));
    for (int i = 0; i < 9; i++) index[i] = i;
    CHECK(kit_batch_from_photos(&batch, &photos, index, 9, NULL, NULL, NULL, &error));
    for (int i = 0; i < 9; i++) {
        const kit_photo *p = &photos.photo[i];
        if (strcmp(p->name, "chelsea.png") != 0) continue;
        CHECK(p->w == 451 && p->h == 300 && p->boxes == 1);
        CHECK(strcmp(photos.box_name[p->first_box], "cat head") == 0);
    }
    kit_batch_free(&batch);
    kit_photos_free(&photos);
}

#define TESTS                                                                                     \
    TEST(test_shapes_have_masks_and_balance) TEST(test_test_shapes_are_parts)                     \
    TEST(test_triangles_point_where_labels_say) TEST(test_spurious_squares)                       \
    TEST(test_shape_errors) TEST(test_decoy_rules) TEST(test_decoy_options)                       \
    TEST(test_annotated_fraction) TEST(test_order_is_a_permutation_and_repeats)                   \
    TEST(test_order_resumes) TEST(test_batch_from_set) TEST(test_class_folders)                   \
    TEST(test_split_folders) TEST(test_waterbirds_layout) TEST(test_waterbirds_errors)            \
    TEST(test_batch_from_photos) TEST(test_views_move_masks_with_pictures)                        \
    TEST(test_damaged_photograph_is_named) TEST(test_real_waterbirds) TEST(test_real_demo_images) \
    remove_scratch();

TEST_MAIN(TESTS)
