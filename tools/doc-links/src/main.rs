//! `doc-links FILE...`: finds links in Markdown files that lead nowhere: to a file that is not there, or to a heading that no
//! file has. Links to other places (`https:`, `mailto:`) are not followed: the check needs no network.
//!
//! Part of `make check`. Prints `FILE:LINE: what is wrong` for each dead link and exits with 1 if there is one.

#![forbid(unsafe_code)]

mod markdown;

use markdown::{Link, anchors, links};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let files: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        eprintln!("usage: doc-links FILE...");
        return ExitCode::from(2);
    }
    let (mut dead, mut checked) = (0, 0);
    for file in &files {
        match check_file(file) {
            Ok((links, problems)) => {
                problems.iter().for_each(|problem| println!("{problem}"));
                checked += links;
                dead += problems.len();
            }
            Err(error) => {
                println!("{}: cannot be read: {error}", file.display());
                dead += 1;
            }
        }
    }
    println!("{checked} links in {} files, {dead} dead", files.len());
    ExitCode::from(u8::from(dead > 0))
}

/// How many links `file` has, and a line for each that leads nowhere.
fn check_file(file: &Path) -> io::Result<(usize, Vec<String>)> {
    let text = fs::read_to_string(file)?;
    let found = links(&text);
    let problems = found.iter().filter_map(|link| {
        Some(format!(
            "{}:{}: {}",
            file.display(),
            link.line,
            problem(file, &text, link)?
        ))
    });
    Ok((found.len(), problems.collect()))
}

/// What is wrong with `link`, which stands in `file` with the content `text`; nothing if it leads somewhere.
fn problem(file: &Path, text: &str, link: &Link) -> Option<String> {
    if link.target.contains("://") || link.target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = match link.target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link.target.as_str(), None),
    };
    if path.starts_with('/') {
        return Some(format!(
            "'{}' is absolute: a link inside the repository is relative",
            link.target
        ));
    }
    let linked = file.parent().unwrap_or(Path::new("")).join(path);
    if !path.is_empty() && !linked.exists() {
        return Some(format!("'{path}' does not exist"));
    }
    let anchor = anchor?;
    let headings = if path.is_empty() {
        anchors(text)
    } else if linked
        .extension()
        .is_some_and(|extension| extension == "md")
    {
        match fs::read_to_string(&linked) {
            Ok(text) => anchors(&text),
            Err(error) => return Some(format!("'{path}' cannot be read: {error}")),
        }
    } else {
        return None; // a line of a source file, say
    };
    let missing = !headings.iter().any(|heading| heading == anchor);
    missing.then(|| {
        format!(
            "'{}' has no heading '#{anchor}'",
            if path.is_empty() { "this file" } else { path }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_dead_link_is_found_and_no_live_one() {
        let dir = env::temp_dir().join(format!("doc-links-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("other.md"), "# Over there\n").unwrap();
        fs::write(dir.join("code.rs"), "").unwrap();
        let page = dir.join("sub/page.md");
        let text = "# Here\n[a](#here) [b](../other.md#over-there) [c](../code.rs#L3) [d](https://example.org/x#y) [e](..)\n\
                    [f](#nowhere)\n[g](../other.md#here)\n[h](missing.md)\n[i](/other.md)\n";
        fs::write(&page, text).unwrap();
        let (links, problems) = check_file(&page).unwrap();
        fs::remove_dir_all(&dir).unwrap();

        assert_eq!(links, 9);
        let lines: Vec<_> = problems
            .iter()
            .map(|problem| problem.split(".md:").nth(1).unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                "3: 'this file' has no heading '#nowhere'",
                "4: '../other.md' has no heading '#here'",
                "5: 'missing.md' does not exist",
                "6: '/other.md' is absolute: a link inside the repository is relative",
            ]
        );
    }
}
