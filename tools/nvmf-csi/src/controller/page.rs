//! Lists in pieces: a token is the identifier after which the next piece begins, so that it stays true while things come and go.

use tonic::Status;

use crate::Result;
use crate::names::Id;

/// One piece of a list that is sorted by identifier, and the token for the next; empty for none.
pub fn cut<T>(
    sorted: Vec<(Id, T)>,
    max_entries: i32,
    starting_token: &str,
) -> Result<(Vec<(Id, T)>, String)> {
    let most = match usize::try_from(max_entries) {
        Ok(0) => usize::MAX,
        Ok(most) => most,
        Err(_) => return Err(Status::invalid_argument("max_entries is negative")),
    };
    let after: Option<Id> = match starting_token {
        "" => None,
        token => Some(token.parse().map_err(|()| {
            Status::aborted(format!(
                "starting_token {token} is none that this driver gave: begin the list anew"
            ))
        })?),
    };
    let mut rest = sorted
        .into_iter()
        .filter(|(id, _)| after.as_ref().is_none_or(|after| id > after))
        .peekable();
    let piece: Vec<_> = rest.by_ref().take(most).collect();
    let next = match (rest.peek(), piece.last()) {
        (Some(_), Some((last, _))) => last.to_string(),
        _ => String::new(),
    };
    Ok((piece, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn list(names: &[&str]) -> Vec<(Id, ())> {
        names
            .iter()
            .map(|name| (name.parse().unwrap(), ()))
            .collect()
    }

    #[test]
    fn pieces_make_up_the_whole() {
        let (piece, token) = cut(list(&["p/a", "p/b", "p/c"]), 2, "").unwrap();
        assert_eq!((piece, token.as_str()), (list(&["p/a", "p/b"]), "p/b"));
        // What the token names may be gone by then.
        assert_eq!(
            cut(list(&["p/a", "p/c"]), 2, &token).unwrap(),
            (list(&["p/c"]), String::new())
        );
        assert_eq!(
            cut(list(&["p/a"]), 0, "").unwrap(),
            (list(&["p/a"]), String::new())
        );
        assert_eq!(
            cut(list(&["p/a"]), -1, "").unwrap_err().code(),
            Code::InvalidArgument
        );
        assert_eq!(
            cut(list(&["p/a"]), 1, "x").unwrap_err().code(),
            Code::Aborted
        );
    }
}
