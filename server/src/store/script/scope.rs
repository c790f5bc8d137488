//! Finds the names in a Lua text that are defined nowhere: misspelled locals, constants that do not exist, functions of
//! the library that are used outside the branch in which they are defined.

use super::tokens::{Token, tokens};

/// What Redis gives to a script.
const GLOBALS: [&str; 14] = [
    "ARGV", "KEYS", "redis", "struct", "string", "math", "table", "tonumber", "tostring", "type", "ipairs", "pairs",
    "select", "unpack",
];
const KEYWORDS: [&str; 21] = [
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
    "repeat", "return", "then", "true", "until", "while",
];

/// The blocks that are open, and the names that each has defined.
struct Scopes<'a> {
    blocks: Vec<Block<'a>>,
    undefined: Vec<String>,
}

struct Block<'a> {
    names: Vec<&'a str>,
    /// The word that opened it.
    opener: &'a str,
}

impl<'a> Scopes<'a> {
    fn open(&mut self, opener: &'a str) {
        self.blocks.push(Block {
            names: Vec::new(),
            opener,
        });
    }

    fn close(&mut self) {
        self.blocks.pop();
    }

    fn define(&mut self, name: &'a str) {
        if let Some(block) = self.blocks.last_mut() {
            block.names.push(name);
        }
    }

    fn use_name(&mut self, name: &str) {
        let is_local = self.blocks.iter().any(|block| block.names.contains(&name));
        if !is_local && !GLOBALS.contains(&name) {
            self.undefined.push(name.to_owned());
        }
    }
}

/// The names that a text uses and does not define.
pub(super) fn undefined_names(text: &str) -> Vec<String> {
    let is_space = |token: &Token<'_>| matches!(token, Token::Comment(_)) || token.text().trim().is_empty();
    let all: Vec<Token<'_>> = tokens(text).filter(|token| !is_space(token)).collect();
    let mut scopes = Scopes {
        blocks: Vec::new(),
        undefined: Vec::new(),
    };
    scopes.open("chunk");
    let text_at = |at: usize| all.get(at).map_or("", |token| token.text());
    let mut at = 0;
    while let Some(&token) = all.get(at) {
        let Token::Name(word) = token else {
            at += 1;
            continue;
        };
        at += 1;
        match word {
            "local" if text_at(at) == "function" => {
                scopes.define(text_at(at + 1));
                at = open_function(&mut scopes, &all, at + 2);
            }
            "function" => at = open_function(&mut scopes, &all, at),
            "local" => {
                // The names hold from the end of the statement on; our texts never use the outer one in it.
                loop {
                    scopes.define(text_at(at));
                    at += 1;
                    if text_at(at) != "," {
                        break;
                    }
                    at += 1;
                }
            }
            "for" => {
                scopes.open("for");
                while text_at(at) != "=" && text_at(at) != "in" {
                    if let Some(Token::Name(name)) = all.get(at) {
                        scopes.define(name);
                    }
                    at += 1;
                }
            }
            // The `do` of a loop belongs to the block that the loop has opened.
            "while" => scopes.open("while"),
            "do" if ["for", "while"].contains(&scopes.blocks.last().map_or("", |block| block.opener)) => {
                if let Some(block) = scopes.blocks.last_mut() {
                    block.opener = "loop";
                }
            }
            "do" | "repeat" | "if" => scopes.open(word),
            "elseif" | "else" => {
                scopes.close();
                scopes.open(word);
            }
            "end" | "until" => scopes.close(),
            _ if KEYWORDS.contains(&word) => {}
            _ => {
                let before = at.checked_sub(2).map_or("", &text_at);
                let is_field = (before == "." && at.checked_sub(3).map_or("", &text_at) != ".") || before == ":";
                let is_key = (before == "{" || before == ",") && text_at(at) == "=" && text_at(at + 1) != "=";
                if !is_field && !is_key {
                    scopes.use_name(word);
                }
            }
        }
    }
    scopes.undefined
}

/// Opens a function at its list of parameters; returns where its body begins.
fn open_function<'a>(scopes: &mut Scopes<'a>, all: &[Token<'a>], mut at: usize) -> usize {
    scopes.open("function");
    while let Some(token) = all.get(at) {
        at += 1;
        match token {
            Token::Name(name) => scopes.define(name),
            Token::Other(")") => break,
            _ => {}
        }
    }
    at
}

#[test]
fn names_hold_inside_their_block_only() {
    let good = "local a, b = 1
        for k, v in pairs(a) do local c = { v = k, a } c.x = b .. c.y end
        if a then return end
        local function f(...) return f(a) end
        while a do repeat local d = 1 until a == 1 end
        return f(b)";
    assert_eq!(undefined_names(good), [""; 0]);
    for (bad, names) in [
        ("local a = b", vec!["b"]),
        ("if x then local y = 1 end return y", vec!["x", "y"]),
        ("for k = 1, 2 do end return k", vec!["k"]),
        ("local function f() local g = 1 end g()", vec!["g"]),
        ("local a = {} a[KEY_LEASE] = KEYS[1]", vec!["KEY_LEASE"]),
    ] {
        assert_eq!(undefined_names(bad), names, "{bad}");
    }
}
