//! Opening backings: what is served, with which units, and how each refusal reads.

use std::io::Write;

use crate::backend::*;

fn options() -> BackingOptions {
    BackingOptions::default()
}

#[test]
fn a_file_with_a_size_is_made_sparse_and_never_shrunk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let missing = BackingSpec::File {
        path: path.clone(),
        size_bytes: None,
    };
    let error = Backing::open(&missing, &options()).unwrap_err().to_string();
    assert!(error.contains("PATH:SIZE"), "{error}");

    let sized = |size_bytes| BackingSpec::File {
        path: path.clone(),
        size_bytes: Some(size_bytes),
    };
    let made = Backing::open(&sized(1 << 30), &options()).unwrap();
    assert_eq!(made.size_bytes(), 1 << 30);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    assert_eq!(blocks, 0, "a new file takes no space");
    drop(made);

    let smaller = Backing::open(&sized(1 << 20), &options()).unwrap();
    assert_eq!(smaller.size_bytes(), 1 << 30, "never shrunk");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 31).unwrap();
    assert_eq!(smaller.size_bytes(), 1 << 30, "until it is looked at again");
    assert_eq!(smaller.resize(None).unwrap(), 1 << 31);
    assert_eq!(smaller.resize(Some(3 << 30)).unwrap(), 3 << 30);
    assert_eq!(smaller.resize(Some(1)).unwrap(), 3 << 30);
}

#[test]
fn a_read_only_file_is_neither_made_nor_grown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let spec = BackingSpec::File {
        path: path.clone(),
        size_bytes: Some(8192),
    };
    let read_only = BackingOptions {
        read_only: true,
        block_bytes: None,
    };
    assert!(matches!(
        Backing::open(&spec, &read_only),
        Err(BackingError::Missing(_))
    ));
    std::fs::File::create(&path)
        .unwrap()
        .write_all(&[7; 4096])
        .unwrap();
    let backing = Backing::open(&spec, &read_only).unwrap();
    assert!(backing.read_only());
    assert_eq!(backing.size_bytes(), 4096);
}

#[test]
fn what_cannot_be_served_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let cases = [
        (BackingSpec::Null { size_bytes: 511 }, "less than one block"),
        (
            BackingSpec::File {
                path: path.join("no/folder"),
                size_bytes: Some(8192),
            },
            "its folder is not there",
        ),
        (
            BackingSpec::Block {
                path: path.join("no-device"),
            },
            "no such device",
        ),
        (
            BackingSpec::Passthrough {
                path: path.join("no-device"),
            },
            "no such device",
        ),
        (
            BackingSpec::Block {
                path: "/dev/null".into(),
            },
            "--file",
        ),
        (
            BackingSpec::File {
                path: "/dev/null".into(),
                size_bytes: None,
            },
            "regular file",
        ),
        (
            BackingSpec::File {
                path: path.clone(),
                size_bytes: None,
            },
            "Is a directory",
        ),
    ];
    for (spec, text) in cases {
        let error = Backing::open(&spec, &options()).unwrap_err().to_string();
        assert!(error.contains(text), "{spec}: {error}");
    }
    let odd = BackingOptions {
        read_only: false,
        block_bytes: Some(1024),
    };
    assert!(matches!(
        Backing::open(
            &BackingSpec::Null {
                size_bytes: 1 << 20
            },
            &odd
        ),
        Err(BackingError::BlockSize(1024))
    ));
}
