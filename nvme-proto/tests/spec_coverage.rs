//! Holds docs/SPEC-COVERAGE.md against the tree: every row has a state, and every test that a row names
//! exists. A test is named `function` or `path::function`, where the path's parts occur in the path of
//! the file, in that order; a guest suite is named `suite.sh`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// All files below `folder`, without build output and hidden folders.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The functions in Rust test code, each with the paths of its files.
fn test_functions() -> HashMap<String, Vec<PathBuf>> {
    let root = root();
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut functions: HashMap<String, Vec<PathBuf>> = HashMap::new();
    for path in all
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
    {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(&root).unwrap().to_owned();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("fn ") {
                if std::mem::take(&mut is_test) {
                    let name = rest.split(['(', '<']).next().unwrap().to_owned();
                    functions.entry(name).or_default().push(relative.clone());
                }
            } else if !line.starts_with("#[") && !line.starts_with("//") {
                is_test = false;
            }
        }
    }
    functions
}

/// Whether a file of `paths` has `modules` in its path, in order.
fn is_in(paths: &[PathBuf], modules: &[&str]) -> bool {
    paths.iter().any(|path| {
        let text = path.with_extension("").to_string_lossy().into_owned();
        let mut parts = text.split('/');
        modules
            .iter()
            .all(|module| parts.any(|part| part.replace('-', "_") == *module))
    })
}

#[test]
fn every_row_has_a_state_and_tests_that_exist() {
    let text = fs::read_to_string(root().join("docs/SPEC-COVERAGE.md")).unwrap();
    let functions = test_functions();
    let mut wrong = Vec::new();
    let mut rows = 0;
    for (number, line) in text.lines().enumerate() {
        let Some(cells) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
            continue;
        };
        let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
        let [_, state, shown] = cells[..] else {
            wrong.push(format!("line {}: a row has three cells", number + 1));
            continue;
        };
        if state == "state" || state.starts_with("---") {
            continue;
        }
        rows += 1;
        let known = [
            "supported",
            "refused",
            "zero",
            "not applicable",
            "unverified",
        ];
        if !known.iter().any(|known| state.starts_with(known)) {
            wrong.push(format!("line {}: '{state}' is no state", number + 1));
        }
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !state.starts_with("not applicable") {
            wrong.push(format!("line {}: no test", number + 1));
        }
        for name in names {
            let exists = if name.ends_with(".sh") {
                root().join("tests/guest").join(name).is_file()
            } else {
                let mut modules: Vec<&str> = name.split("::").collect();
                let function = modules.pop().unwrap();
                functions
                    .get(function)
                    .is_some_and(|paths| is_in(paths, &modules))
            };
            if !exists {
                wrong.push(format!("line {}: there is no test {name}", number + 1));
            }
        }
    }
    assert!(rows > 100, "only {rows} rows were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
