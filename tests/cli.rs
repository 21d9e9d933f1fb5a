//! The program as its users run it, with a tiny network.

mod program;

use std::io::Write;
use std::process::Stdio;

use program::{Place, failed, fine, text, weights};
use serde_json::Value;

#[test]
fn a_photo_gives_overlay_and_json() {
    let place = Place::new();
    let printed = fine(&place.explain(&["photo.png", "--out", "new/folder"]));
    assert!(printed.contains("photo.png (80×60)") && printed.contains('%'), "{printed}");
    assert_eq!(place.files("new/folder"), ["photo.json", "photo.overlay.png"]);
    let overlay = image::open(place.path("new/folder/photo.overlay.png")).unwrap();
    assert_eq!((overlay.width(), overlay.height()), (80, 60));
}

#[test]
fn every_kind_of_file_and_every_field() {
    let place = Place::new();
    let kinds = "overlay,panel,heat,npy,png16,json,npy";
    let printed = fine(&place.explain(&["photo.png", "--out", "o", "--emit", kinds, "--json"]));
    let expected =
        ["photo.heat.png", "photo.json", "photo.npy", "photo.overlay.png", "photo.panel.png", "photo.png16.png"];
    assert_eq!(place.files("o"), expected);
    assert_eq!(printed.lines().count(), 1);
    let line: Value = serde_json::from_str(&printed).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(place.path("o/photo.json")).unwrap()).unwrap();
    assert_eq!(line, file);
    for key in [
        "/version",
        "/input/path",
        "/input/sha256",
        "/network/model",
        "/network/weights",
        "/network/sha256",
        "/methods/0/name",
        "/methods/0/layer",
        "/methods/0/settings",
        "/mode",
        "/classes/0/class",
        "/classes/0/label",
        "/classes/0/probability",
        "/classes/0/method",
        "/classes/0/status",
        "/classes/0/map/min",
        "/classes/0/map/max",
        "/classes/0/map/sum",
        "/classes/0/patch_probabilities/3",
        "/top5/4/label",
        "/grid/n",
        "/grid/rho",
        "/grid/alpha",
        "/grid/patch/1",
        "/grid/scaled/1",
        "/grid/offsets/rows/1",
        "/grid/offsets/columns/1",
        "/working/to_photo/offset/1",
        "/resize",
        "/timings_ms/decode",
        "/timings_ms/resize",
        "/timings_ms/plan",
        "/timings_ms/whole",
        "/timings_ms/patches",
        "/timings_ms/fold",
        "/timings_ms/explain",
        "/timings_ms/render",
        "/timings_ms/total",
        "/threads",
        "/device",
    ] {
        assert!(line.pointer(key).is_some(), "{key} is missing in {line}");
    }
    assert_eq!(line["schema"], 1);
    assert_eq!(line["input"]["width"], 80);
    assert_eq!(line["network"]["classes"], 6);
    assert_eq!(line["files"].as_array().unwrap().len(), 6);
    assert_eq!(line["working"]["width"], 85);
    assert_eq!(line["working"]["height"], 64);
    assert_eq!(line["working"]["to_photo"]["scale"][1], 60.0 / 64.0);
    let npy = std::fs::read(place.path("o/photo.npy")).unwrap();
    let header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (64, 85), }";
    assert_eq!(&npy[..header.len()], header);
    assert_eq!(npy.len(), 128 + 64 * 85 * 4);
    let deep = image::open(place.path("o/photo.png16.png")).unwrap();
    assert_eq!((deep.width(), deep.height(), deep.color()), (85, 64, image::ColorType::L16));
}

#[test]
fn several_classes_are_told_apart_in_names() {
    let place = Place::new();
    let arguments =
        ["photo.png", "--out", "o", "--class", "DOG", "--class", "1", "--class", "retriever", "--class", "cat"];
    fine(&place.explain(&arguments));
    let expected =
        ["photo.1.overlay.png", "photo.2.overlay.png", "photo.3.overlay.png", "photo.5.overlay.png", "photo.json"];
    assert_eq!(place.files("o"), expected);
    fine(&place.explain(&["photo.png", "--out", "p", "--top", "2", "--emit", "npy"]));
    assert_eq!(place.files("p").len(), 2);
    fine(&place.explain(&["photo.png", "--out", "q", "--plain", "--method", "lrp-epsilon-plus", "--resize", "crop"]));
    let json: Value = serde_json::from_slice(&std::fs::read(place.path("q/photo.json")).unwrap()).unwrap();
    assert!(json["grid"].is_null());
    assert_eq!(json["working"]["width"], 64);
}

#[test]
fn several_methods_are_told_apart_in_names_and_share_a_panel() {
    let place = Place::new();
    let two = ["photo.png", "--method", "grad-cam,lrp-epsilon-plus"];
    let printed = fine(&place.explain(&[&two[..], &["--out", "o", "--emit", "npy,panel,json"]].concat()));
    assert!(printed.contains("grad-cam, lrp-epsilon-plus of resnet18"), "{printed}");
    let expected = ["photo.grad-cam.npy", "photo.json", "photo.lrp-epsilon-plus.npy", "photo.panel.png"];
    assert_eq!(place.files("o"), expected);
    let json: Value = serde_json::from_slice(&std::fs::read(place.path("o/photo.json")).unwrap()).unwrap();
    assert_eq!(json["methods"][0], serde_json::json!({"name": "grad-cam", "layer": "layer4", "settings": {}}));
    assert_eq!(json["methods"][1]["layer"], Value::Null);
    let methods = [&json["classes"][0]["method"], &json["classes"][1]["method"]];
    assert_eq!(methods, ["grad-cam", "lrp-epsilon-plus"]);
    assert_eq!(json["classes"][0]["class"], json["classes"][1]["class"]);
    // The same maps as one after the other.
    for method in ["grad-cam", "lrp-epsilon-plus"] {
        fine(&place.explain(&["photo.png", "--out", "alone", "--emit", "npy", "--method", method]));
        let read = |name: &str| std::fs::read(place.path(name)).unwrap();
        assert!(read("alone/photo.npy") == read(&format!("o/photo.{method}.npy")), "{method}");
    }
    let size = |name: &str| image::image_dimensions(place.path(name)).unwrap();
    fine(&place.explain(&["photo.png", "--out", "alone", "--emit", "panel"]));
    assert_eq!((size("alone/photo.panel.png"), size("o/photo.panel.png")), ((1600, 436), (1216, 680)));

    fine(&place.explain(&[&two[..], &["--out", "p", "--class", "1", "--class", "3", "--emit", "heat,panel"]].concat()));
    let expected = [
        "photo.1.grad-cam.heat.png",
        "photo.1.lrp-epsilon-plus.heat.png",
        "photo.1.panel.png",
        "photo.3.grad-cam.heat.png",
        "photo.3.lrp-epsilon-plus.heat.png",
        "photo.3.panel.png",
    ];
    assert_eq!(place.files("p"), expected);
}

#[test]
fn checks_are_printed_and_in_the_json() {
    let place = Place::new();
    let job = ["photo.png", "--method", "grad-cam,lrp-epsilon-plus", "--emit", "json", "--out", "o"];
    let printed = fine(&place.explain(&[&job[..], &["--check"]].concat()));
    for words in
        ["check of grad-cam: it promises no sum", "check of lrp-epsilon-plus for", "lost", "layer4.1.add", "fc "]
    {
        assert!(printed.contains(words), "expected `{words}` in: {printed}");
    }
    let read = || -> Value { serde_json::from_slice(&std::fs::read(place.path("o/photo.json")).unwrap()).unwrap() };
    let json = read();
    assert!(json["classes"][0].get("checks").is_none());
    let checks = json["classes"][1]["checks"].as_array().unwrap();
    assert_eq!(checks[0]["node"], "fc");
    assert!(checks.iter().all(|check| ["expected", "found", "lost"].iter().all(|key| check[key].is_number())));
    assert!(!fine(&place.explain(&job)).contains("check"));
    assert!(read()["classes"][1].get("checks").is_none());
}

/// The palette follows the signs: colours of a map that is never negative are the sequential palette's.
#[test]
fn signed_maps_diverge_and_others_do_not() {
    let place = Place::new();
    fine(&place.explain(&["photo.png", "--out", "o", "--emit", "heat", "--method", "gradient,input-x-gradient"]));
    let colours = |method: &str| {
        let picture = image::open(place.path(&format!("o/photo.{method}.heat.png"))).unwrap().into_rgb8();
        picture.pixels().map(|p| p.0).collect::<Vec<_>>()
    };
    let sequential: Vec<_> = (0..=510).map(|i| ucag::palette::sequential(i as f32 / 510.0)).collect();
    let diverging: Vec<_> = (0..=510).map(|i| ucag::palette::diverging(i as f32 / 255.0 - 1.0)).collect();
    assert!(colours("gradient").iter().all(|c| sequential.contains(c)));
    assert!(colours("input-x-gradient").iter().all(|c| diverging.contains(c)));
}

#[test]
fn folders_lists_and_standard_input() {
    let place = Place::new();
    std::fs::create_dir(place.path("photos")).unwrap();
    for name in ["b.png", "a.jpg", "a.overlay.png", "two words.png"] {
        place.photo(&format!("photos/{name}"));
    }
    std::fs::write(place.path("photos/notes.txt"), "no photo").unwrap();
    let printed = fine(&place.explain(&["photos", "--json", "--out", "o", "--emit", "json"]));
    let stems: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["input"]["path"].clone()).collect();
    assert_eq!(stems, ["photos/a.jpg", "photos/b.png", "photos/two words.png"]);

    let list = "photos/a.jpg dog\n\nphotos/two words.png\tgolden retriever\nphoto.png\n";
    std::fs::write(place.path("list.txt"), list).unwrap();
    let printed = fine(&place.explain(&["--list", "list.txt", "--json", "--class", "bear"]));
    let classes: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["classes"][0]["class"].clone())
        .collect();
    assert_eq!(classes, [2, 3, 4]);

    let mut command =
        place.command(&["explain", "-", "--grid", "2", "--rho", "1", "--alpha", "1", "--out", "in", "--quiet"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&std::fs::read(place.path("photo.png")).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(fine(&output), "");
    assert_eq!(place.files("in"), ["stdin.json", "stdin.overlay.png"]);
}

#[test]
fn a_stem_used_twice_is_an_error_before_any_work() {
    let place = Place::new();
    place.photo("photo.jpg");
    failed(&place.explain(&["photo.png", "photo.jpg", "--out", "o"]), &["photo.png", "photo.jpg"]);
    assert!(!place.path("o").exists());
}

#[test]
fn bad_photos_do_not_keep_good_ones_from_being_explained() {
    let place = Place::new();
    let whole = std::fs::read(place.path("photo.png")).unwrap();
    std::fs::write(place.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(place.path("empty.png"), "").unwrap();
    std::fs::write(place.path("huge.ppm"), "P6\n90000 90000\n255\n").unwrap();
    std::fs::create_dir(place.path("bare")).unwrap();
    image::RgbImage::new(900, 4).save(place.path("narrow.png")).unwrap();
    let photos = ["cut.png", "empty.png", "huge.ppm", "bare", "narrow.png", "none.png", "photo.png/x.png", "photo.png"];
    let output = place.explain(&[&photos[..], &["--out", "o", "--json"]].concat());
    failed(&output, &["cut.png", "empty file", "90000", "bare", "900×4", "none.png", "photo.png/x.png"]);
    assert_eq!(text(&output.stderr).lines().count(), 7, "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 1);
    assert_eq!(place.files("o"), ["photo.json", "photo.overlay.png"]);
}

#[test]
fn a_photo_of_one_pixel_is_explained() {
    let place = Place::new();
    image::RgbImage::new(1, 1).save(place.path("dot.png")).unwrap();
    let output = place.explain(&["dot.png", "--out", "o", "--emit", "overlay,heat,panel"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output.stderr));
    assert_eq!(place.files("o").len(), 3);
}

#[test]
fn maps_that_say_nothing_are_a_status() {
    let place = Place::new();
    std::fs::write(place.path("dead.safetensors"), weights(true)).unwrap();
    let output = place.explain(&["photo.png", "--weights", "dead.safetensors", "--out", "o"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let words = "the map is empty: nothing at `layer4` speaks for this class";
    assert!(text(&output.stdout).contains(words), "{}", text(&output.stdout));
    let several = ["photo.png", "--weights", "dead.safetensors", "--method", "grad-cam,gradient", "--emit", "json"];
    let output = place.explain(&several);
    let words = "; the map of grad-cam is empty: nothing at `layer4` speaks for this class; the map of gradient is empty: nothing in";
    assert!(text(&output.stdout).contains(words), "{}", text(&output.stdout));
    let json: Value = serde_json::from_slice(&std::fs::read(place.path("o/photo.json")).unwrap()).unwrap();
    assert_eq!(json["classes"][0]["status"], "empty");
    let pixels = |name: &str| image::open(place.path(name)).unwrap().into_rgb8();
    assert_eq!(pixels("o/photo.overlay.png"), pixels("photo.png"));
}

#[test]
fn options_that_make_no_sense() {
    let place = Place::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--class", "6"], &["0 to 5"]),
        (&["--class", "ca"], &["3 names match", "tabby cat", "tiger cat"]),
        (&["--class", "unicorn"], &["unicorn", "tabby cat"]),
        (&["--top", "7"], &["1 to 6"]),
        (&["--top", "0"], &["1 to 6"]),
        (&["--model", "alexnet"], &["alexnet", "resnet18"]),
        (&["--model", "vgg16"], &["vgg16", "missing"]),
        (&["--method", "tea-leaves"], &["tea-leaves", "grad-cam"]),
        (&["--method", "lrp-epsilon-gamma-box", "--set", "gamma=1e39"], &["gamma", "0 to 1000000", "1e39"]),
        (&["--method", "grad-cam,gradient,grad-cam"], &["method", "`grad-cam` twice"]),
        (&["--set", "samples"], &["KEY=VALUE", "samples"]),
        (&["--set", "brush=1"], &["unknown setting `brush`; known: none of grad-cam"]),
        (&["--set", "gradient.brush=1"], &["unknown setting `gradient.brush`"]),
        (&["--layer", "layer9"], &["layer9", "layer4"]),
        (&["--layer", "fc"], &["fc"]),
        (&["--grid", "2", "--rho", "0.3"], &["uncovered"]),
        (&["--rho", "1.5"], &["rho"]),
        (&["--alpha", "-1"], &["alpha"]),
        (&["--grid", "0"], &["patches"]),
        (&["--size", "0"], &["size"]),
        (&["--threads", "0"], &["threads"]),
        (&["--batch", "0"], &["batch", "1 or more", "0"]),
        (&["--memory", "1K"], &["memory", "MiB"]),
        (&["--memory", "much"], &["512M"]),
        (&["--device", "gpu"], &["auto", "cpu"]),
        (&["--mode", "draft"], &["paper", "release"]),
        (&["--emit", "gif"], &["overlay"]),
        (&["--plain", "--emit", "panel"], &["panel"]),
        (&["--weights", "none.safetensors"], &["none.safetensors"]),
        (&["--weights", "photo.png"], &["photo.png", "safetensors"]),
        (&["--labels", "none.txt"], &["none.txt"]),
        (&["--labels", "photo.list"], &["6 names"]),
        (&["--list", "none.list"], &["none.list"]),
        (&["--out", "photo.png"], &["photo.png"]),
        (&["--out", "photo.png/below"], &["photo.png/below"]),
        (&["--nonsense"], &["--nonsense"]),
    ];
    std::fs::write(place.path("photo.list"), "cat\ndog\n").unwrap();
    let before = place.files(".");
    for (arguments, words) in cases {
        let fixed: &[&str] = &["explain", "photo.png"];
        failed(&place.run(&[fixed, arguments].concat()), words);
        assert_eq!(place.files("."), before, "{arguments:?} left something");
    }
    failed(&place.run(&["explain"]), &["PHOTO"]);
}

#[test]
fn vector_instructions_are_those_that_the_environment_names() {
    let place = Place::new();
    let explain = |isa: &str| {
        let mut command = place.command(&["explain", "photo.png", "--device", "cpu", "--plain"]);
        command.env("UCAG_ISA", isa).output().unwrap()
    };
    failed(&explain("tea"), &["UCAG_ISA: expected `avx512`, `avx2` or `portable`, found `tea`"]);
    fine(&explain("portable"));
    #[cfg(target_arch = "x86_64")]
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(target_arch = "x86_64")]
    let avx512 = avx2 && is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let (avx2, avx512) = (false, false);
    for (isa, present) in [("avx2", avx2), ("avx512", avx512)] {
        let output = explain(isa);
        if present {
            fine(&output);
        } else {
            failed(&output, &[format!("UCAG_ISA: this processor has no {isa}").as_str()]);
        }
    }
}

#[test]
fn devices_and_bench() {
    let place = Place::new();
    assert!(fine(&place.run(&["devices"])).starts_with("cpu "));
    let job = ["bench", "photo.png", "--device", "cpu", "--grid", "2", "--rho", "0.6", "--alpha", "1", "--frames", "3"];
    let text = fine(&place.run(&job));
    for word in ["grad-cam of resnet18 on cpu", "3 frames of 80×60", "p99", "floor", "whole", "patches", "fold"] {
        assert!(text.contains(word), "expected `{word}` in: {text}");
    }
    let text = fine(&place.run(&[&job[..], &["--layers"]].concat()));
    for word in ["layer4.1.bn2", "Conv 3x3/1", "Fold", "GFLOP/s"] {
        assert!(text.contains(word), "expected `{word}` in: {text}");
    }
    let json = fine(&place.run(&[&job[..], &["--json", "--batch", "2"]].concat()));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["frames"], 3);
    assert_eq!(report["batch"], 2);
    let latency = &report["latency_ms"];
    let at = |key: &str| latency[key].as_f64().unwrap();
    assert!(at("p50") > 0.0 && at("p50") <= at("p90") && at("p90") <= at("p99") && at("p99") <= at("max"));
    for stage in report["stages"].as_array().unwrap().iter().skip(1) {
        let (ms, floor) = (stage["ms"].as_f64().unwrap(), stage["floor_ms"].as_f64().unwrap());
        assert!(ms > 0.0 && floor > 0.0, "{stage}");
    }
    assert!(report["memory_bytes"].as_u64().unwrap() > 0);
    failed(&place.run(&["bench", "--frames", "0"]), &["frames"]);
    failed(&place.run(&["bench", "missing.png"]), &["missing.png"]);
    failed(&place.run(&["explain", "photo.png", "--device", "gpu"]), &["gpu", "auto, cpu, cuda or cuda:N"]);
    failed(&place.run(&["explain", "photo.png", "--device", "cpu", "--precision", "f16"]), &["f16", "f32"]);
}

/// A program without GPU support says so.
#[cfg(not(feature = "cuda"))]
#[test]
fn gpus_need_the_feature() {
    let place = Place::new();
    assert!(fine(&place.run(&["devices"])).contains("--features cuda"));
    failed(&place.run(&["explain", "photo.png", "--device", "cuda"]), &["cuda", "--features cuda"]);
}

#[test]
fn models_methods_and_inspect() {
    let place = Place::new();
    assert!(fine(&place.run(&["models"])).contains("vgg16"));
    let layers = fine(&place.run(&["models", "resnet18"]));
    assert!(layers.contains("layer4  (default)") && layers.contains("layer3  (default of mwp, cmwp)"), "{layers}");
    let methods = fine(&place.run(&["methods"]));
    for method in ucag::methods::METHODS {
        let (name, family, sign) = (method.name, method.family.to_string(), method.sign.to_string());
        let row = methods.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        assert!(row.contains(&family) && row.ends_with(&sign) && row.contains(method.networks), "{row}");
        let details = fine(&place.run(&["methods", name]));
        let settings = method.settings.iter().map(|s| format!("{}={}  {}", s.key, s.kind.default(), s.help));
        for words in [method.passes, method.source].map(String::from).into_iter().chain(settings) {
            assert!(methods.contains(&words) && details.contains(&words), "{name}: {words}");
        }
        let papers = details.lines().filter(|line| line.trim_start().starts_with("paper "));
        assert_eq!(papers.count(), 1, "of one method: {details}");
    }
    failed(&place.run(&["methods", "tea-leaves"]), &["tea-leaves", "grad-cam"]);
    let facts = fine(&place.run(&["inspect", "net.safetensors"]));
    for word in ["resnet18", "F32", "ucag.labels", "6: tabby cat"] {
        assert!(facts.contains(word), "expected `{word}` in: {facts}");
    }
    failed(&place.run(&["inspect", "net.safetensors", "--model", "resnet34"]), &["missing"]);
    failed(&place.run(&["inspect", "photo.png"]), &["photo.png"]);
    failed(&place.run(&["models", "alexnet"]), &["alexnet"]);
    assert!(fine(&place.run(&["--version"])).starts_with("ucag-fast "));
    assert!(fine(&place.run(&["explain", "--help"])).contains("Examples"));
}

/// What was nudged is in the JSON; published code has nothing that could be.
#[test]
fn grids_are_aligned_on_request() {
    let place = Place::new();
    let grid = |arguments: &[&str]| {
        let json = fine(
            &place.run(&[&["explain", "photo.png", "--device", "cpu", "--json", "--emit", "npy"], arguments].concat()),
        );
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["grid"].clone()
    };
    let (plain, aligned, release) = (grid(&[]), grid(&["--grid-align"]), grid(&["--mode", "release"]));
    assert_eq!((&plain["aligned"], &aligned["aligned"]), (&false.into(), &true.into()));
    assert_eq!(plain["factors"], serde_json::json!([2.6, 2.6]));
    for (axis, size) in ["rows", "columns"].iter().enumerate().map(|(i, axis)| (i, &aligned["offsets"][axis])) {
        let step = (size[1].as_u64().unwrap() - size[0].as_u64().unwrap()) as f64;
        let scaled = step * aligned["factors"][axis].as_f64().unwrap();
        assert!((scaled / 4.0 - (scaled / 4.0).round()).abs() < 1e-9, "{aligned}");
    }
    let (patch, scaled) = (&release["patch"][0], &release["scaled"][0]);
    assert_eq!(release["factors"][0].as_f64(), Some(scaled.as_f64().unwrap() / patch.as_f64().unwrap()), "{release}");
    fine(&place.run(&["explain", "photo.png", "--device", "cpu", "--no-shortcuts", "--emit", "npy"]));
    failed(&place.run(&["explain", "photo.png", "--grid-align", "--mode", "release"]), &["--grid-align", "--mode"]);
}
