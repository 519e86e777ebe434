//! The little of Markdown that is needed to find links and the headings that they may lead to.
//!
//! Read: inline links and images, reference definitions, `#` headings. Code, in fences or in backticks, is not looked into.
//! Not read, since our documents do not use them: underlined headings, HTML, links that span lines.

use std::collections::HashMap;

/// A link and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The line, counted from 1.
    pub line: usize,
    /// What it leads to, as written, without a title.
    pub target: String,
}

/// All links of a document.
pub(crate) fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for (line, content) in prose(text) {
        let content = without_code(content);
        for (at, _) in content.match_indices("](") {
            push(&mut found, line, destination(&content[at + 2..], ')'));
        }
        // `[name]: target`
        if let Some((name, target)) = content.trim_start().split_once("]: ")
            && name.starts_with('[')
            && !name[1..].contains('[')
        {
            push(&mut found, line, destination(target, '\n'));
        }
    }
    found
}

/// The anchors of a document's headings, as the usual renderers make them.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = Vec::new();
    for (_, content) in prose(text) {
        let level = content.len() - content.trim_start_matches('#').len();
        if !(1..=6).contains(&level) || !content[level..].starts_with(' ') {
            continue;
        }
        let anchor = slug(content[level..].trim());
        let count = seen.entry(anchor.clone()).or_default();
        found.push(if *count == 0 {
            anchor
        } else {
            format!("{anchor}-{count}")
        });
        *count += 1;
    }
    found
}

/// A heading's text as an anchor: small letters, blanks as hyphens, other punctuation dropped; of a link, its text.
fn slug(heading: &str) -> String {
    let mut text = heading.to_lowercase();
    while let Some(start) = text.find("](")
        && let Some(end) = text[start..].find(')')
    {
        text.replace_range(start..=start + end, "");
    }
    text.chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c),
            _ => None,
        })
        .collect()
}

/// The lines outside of fenced code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let start = line.trim_start();
        let marker = ["```", "~~~"]
            .into_iter()
            .find(|marker| start.starts_with(marker));
        match (fence, marker) {
            (None, None) => return Some((index + 1, line)),
            (None, Some(marker)) => fence = Some(marker),
            (Some(open), Some(marker)) if open == marker => fence = None,
            (Some(_), _) => {}
        }
        None
    })
}

/// The line with what stands between backticks blanked out.
fn without_code(line: &str) -> String {
    let code = |(index, part): (usize, &str)| {
        if index % 2 == 1 {
            " ".repeat(part.len())
        } else {
            part.to_owned()
        }
    };
    line.split('`')
        .enumerate()
        .map(code)
        .collect::<Vec<_>>()
        .join("`")
}

/// The target that begins `text` and ends at `end`; a title after it is dropped, and so are angle brackets around it.
fn destination(text: &str, end: char) -> &str {
    let target = text.split([end, ' ']).next().unwrap_or_default();
    target.trim_start_matches('<').trim_end_matches('>')
}

fn push(found: &mut Vec<Link>, line: usize, target: &str) {
    if !target.is_empty() {
        found.push(Link {
            line,
            target: target.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<(usize, String)> {
        links(text)
            .into_iter()
            .map(|link| (link.line, link.target))
            .collect()
    }

    #[test]
    fn inline_links_images_and_references_are_found() {
        let text = "see [a](x.md) and ![b](pic.svg \"title\")\n\n[c]: <y.md>\n| [d](z.md#e) |\n";
        let expected = [(1, "x.md"), (1, "pic.svg"), (3, "y.md"), (4, "z.md#e")];
        assert_eq!(
            targets(text),
            expected.map(|(line, target)| (line, target.to_owned()))
        );
    }

    #[test]
    fn code_is_left_alone() {
        assert_eq!(
            targets("`[a](x)` b\n```\n[c](y)\n~~~\n[d](y)\n```\n[e](z)\n"),
            [(7, "z".to_owned())]
        );
    }

    #[test]
    fn headings_become_anchors() {
        let text = "# A `b` & [C](d.md): e_f!\n## Two\n### Two\n#no heading\n```\n# code\n```\n";
        assert_eq!(anchors(text), ["a-b--c-e_f", "two", "two-1"]);
    }
}
