//! What the program leaves where it cannot write, or is stopped: whole files or none.

mod program;

use std::path::Path;
use std::process::{Command, Stdio};

use program::{Place, failed, fine, text};

#[test]
fn files_are_replaced_whole_or_not_at_all() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("o/photo.json")).unwrap();
    std::fs::write(place.path("o/photo.overlay.png"), "old").unwrap();
    failed(&place.explain(&["photo.png", "--out", "o"]), &["photo.json"]);
    assert_eq!(std::fs::read(place.path("o/photo.overlay.png")).unwrap(), b"old");
    std::fs::remove_dir(place.path("o/photo.json")).unwrap();
    fine(&place.explain(&["photo.png", "--out", "o"]));
    assert_eq!(place.files("o"), ["photo.json", "photo.overlay.png"]);
    assert!(image::open(place.path("o/photo.overlay.png")).is_ok());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| std::fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("o/photo.json"), mode("photo.png"), "as any new file");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_or_closed_standard_output() {
    let place = Place::new();
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    let output = place.command(&["methods"]).stdout(full()).output().unwrap();
    failed(&output, &["standard output"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place.command(&["methods"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
#[cfg(target_os = "linux")]
fn full_and_read_only_disks() {
    let place = Place::new();
    std::fs::create_dir(place.path("disk")).unwrap();
    let disk = place.path("disk").display().to_string();
    let mount = |arguments: &[&str]| Command::new("mount").args(arguments).arg(&disk).output();
    if !mount(&["-t", "tmpfs", "-o", "size=4k", "none"]).is_ok_and(|done| done.status.success()) {
        return; // only the superuser may mount
    }
    let full = place.explain(&["photo.png", "--out", "disk"]);
    let left = place.files("disk");
    mount(&["-o", "remount,ro"]).unwrap();
    let locked = place.explain(&["photo.png", "--out", "disk"]);
    Command::new("umount").arg(&disk).status().unwrap();
    failed(&full, &["photo.overlay.png", "No space left"]);
    assert!(left.is_empty(), "{left:?}");
    failed(&locked, &["disk", "Read-only"]);
}

#[test]
#[cfg(unix)]
fn an_interrupt_leaves_no_temporary_file() {
    let place = Place::new();
    let mut child = place.command(&["explain", "photo.png", "--grid", "40", "--out", "o"]).spawn().unwrap();
    while !Path::new(&place.path("o")).exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(place.files("o").is_empty());
}
