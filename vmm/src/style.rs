//! Colour and bold, where somebody can see them.

/// How text may be decorated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Not at all.
    Plain,
    /// With ANSI escape sequences.
    Ansi,
}

impl Style {
    /// The style for an output stream: decorated on a terminal, unless `NO_COLOR` is set (<https://no-color.org>) or
    /// the terminal says it can't.
    pub fn for_stream(is_terminal: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if is_terminal && !no_color && !dumb {
            Self::Ansi
        } else {
            Self::Plain
        }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Something of less importance.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// Something good.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Something that isn't there, or costs.
    pub fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Something wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Something to look at.
    pub fn accent(self, text: &str) -> String {
        self.wrap("36", text)
    }
}
