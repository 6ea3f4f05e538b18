use std::collections::HashMap;

/// How many links may lead to each other before they count as a circle.
pub const MAX_HOPS: usize = 8;

/// What there is under each name of an archive. A name that is there twice means its last entry, as after extracting.
#[derive(Clone, Debug)]
pub struct Table<T>(HashMap<String, Place<T>>);

#[derive(Clone, Debug)]
enum Place<T> {
    File(T),
    /// A hard or symbolic link to this name.
    Link(String),
}

/// Links lead to each other, perhaps in a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyHops;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Table<T> {
    /// A file takes the name.
    pub fn file(&mut self, name: String, place: T) {
        self.0.insert(name, Place::File(place));
    }

    /// A link to `target` takes the name.
    pub fn link(&mut self, name: String, target: String) {
        self.0.insert(name, Place::Link(target));
    }

    /// What cannot be read takes the name.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file of a name, through links.
    ///
    /// # Errors
    ///
    /// [`TooManyHops`] if more than [`MAX_HOPS`] links lead from it to each other.
    pub fn find(&self, name: &str) -> Result<Option<&T>, TooManyHops> {
        let Some(name) = normalise("", name.as_bytes()) else { return Ok(None) };
        let mut name = &name;
        for _ in 0..=MAX_HOPS {
            match self.0.get(name) {
                None => return Ok(None),
                Some(Place::Link(target)) => name = target,
                Some(Place::File(place)) => return Ok(Some(place)),
            }
        }
        Err(TooManyHops)
    }
}

/// A path in the archive without `.` and `..`. `None` if it is not UTF-8, is empty, or leads out of the archive.
pub fn normalise(folder: &str, path: &[u8]) -> Option<String> {
    let path = str::from_utf8(path).ok()?;
    let folder = if path.starts_with('/') { "" } else { folder };
    let mut parts = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
