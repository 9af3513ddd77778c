//! Text to tokens.

use super::CompileError;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Ident(String),
    /// An identifier in backticks: a field whose name is no identifier.
    Quoted(String),
    Int(i64),
    Uint(u64),
    Double(f64),
    /// Digits too large for an int: only good behind a minus.
    Huge,
    Text(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

impl Token {
    /// As error messages show it.
    pub fn shown(&self) -> String {
        match self {
            Self::Ident(name) => name.clone(),
            Self::Quoted(name) => format!("`{name}`"),
            Self::Int(number) => number.to_string(),
            Self::Uint(number) => format!("{number}u"),
            Self::Double(number) => number.to_string(),
            Self::Huge => "9223372036854775808".into(),
            Self::Text(text) => format!("{text:?}"),
            Self::Bytes(_) => "bytes".into(),
            Self::Sign(sign) => (*sign).to_owned(),
            Self::End => "<EOF>".into(),
        }
    }
}

/// Longest first.
const SIGNS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "+", "*", "/", "%", "?", ":", "!",
    "<", ">", "=",
];

/// All tokens with the character each begins at; the last is `End`.
pub fn tokens(source: &str) -> Result<Vec<(Token, usize)>, CompileError> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at;
        let token = lexer.next().map_err(|why| CompileError::at(source, at, &format!("Syntax error: {why}")))?;
        let end = token == Token::End;
        tokens.push((token, at));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip_blank(&mut self) {
        loop {
            match self.peek(0) {
                ' ' | '\t' | '\n' | '\r' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == '/' => {
                    while self.at < self.chars.len() && self.peek(0) != '\n' {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn starts(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, c)| self.peek(index) == c)
    }

    fn next(&mut self) -> Result<Token, String> {
        if self.at >= self.chars.len() {
            return Ok(Token::End);
        }
        let c = self.peek(0);
        if let Some(token) = self.prefixed_text()? {
            return Ok(token);
        }
        if c.is_ascii_digit() || c == '.' && self.peek(1).is_ascii_digit() {
            return self.number();
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let word = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
            return Ok(Token::Ident(word));
        }
        if c == '`' {
            self.at += 1;
            let word = self.take(|c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c));
            if self.peek(0) != '`' || word.is_empty() {
                return Err("token recognition error at: '`'".into());
            }
            self.at += 1;
            return Ok(Token::Quoted(word));
        }
        for sign in SIGNS {
            if self.starts(sign) && sign != "=" {
                self.at += sign.len();
                return Ok(Token::Sign(sign));
            }
        }
        Err(format!("token recognition error at: '{c}'"))
    }

    fn take(&mut self, while_: impl Fn(char) -> bool) -> String {
        let begin = self.at;
        while self.at < self.chars.len() && while_(self.peek(0)) {
            self.at += 1;
        }
        self.chars[begin..self.at].iter().collect()
    }

    fn number(&mut self) -> Result<Token, String> {
        if self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') {
            self.at += 2;
            let digits = self.take(|c| c.is_ascii_hexdigit());
            return self.whole(&digits, 16);
        }
        let mut text = self.take(|c| c.is_ascii_digit());
        let mut double = false;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            double = true;
            self.at += 1;
            text.push('.');
            text.push_str(&self.take(|c| c.is_ascii_digit()));
        }
        let sign = usize::from(matches!(self.peek(1), '+' | '-'));
        if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
            double = true;
            text.push('e');
            self.at += 1;
            if sign == 1 {
                text.push(self.peek(0));
                self.at += 1;
            }
            text.push_str(&self.take(|c| c.is_ascii_digit()));
        }
        if double {
            return text.parse().map(Token::Double).map_err(|_| "invalid double literal".into());
        }
        self.whole(&text, 10)
    }

    fn whole(&mut self, digits: &str, radix: u32) -> Result<Token, String> {
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return u64::from_str_radix(digits, radix).map(Token::Uint).map_err(|_| "invalid uint literal".into());
        }
        match u64::from_str_radix(digits, radix) {
            Ok(number) if number == 1 << 63 => Ok(Token::Huge),
            Ok(number) => i64::try_from(number).map(Token::Int).map_err(|_| "invalid int literal".into()),
            Err(_) => Err("invalid int literal".into()),
        }
    }

    /// A string or bytes literal with its prefixes, if one begins here.
    fn prefixed_text(&mut self) -> Result<Option<Token>, String> {
        let (mut raw, mut bytes, mut length) = (false, false, 0);
        while length < 2 {
            match self.peek(length) {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => break,
            }
            length += 1;
        }
        let quote = self.peek(length);
        if quote != '"' && quote != '\'' {
            return Ok(None);
        }
        self.at += length;
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        let width = if triple { 3 } else { 1 };
        self.at += width;
        let mut out = Vec::new();
        loop {
            if self.at >= self.chars.len() || !triple && matches!(self.peek(0), '\n' | '\r') {
                return Err(format!("token recognition error at: '{quote}'"));
            }
            if (0..width).all(|index| self.peek(index) == quote) {
                self.at += width;
                break;
            }
            let c = self.peek(0);
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Some(Token::Bytes(out)));
        }
        Ok(Some(Token::Text(String::from_utf8(out).map_err(|_| "invalid UTF-8 in string literal")?)))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let c = self.peek(0);
        self.at += 1;
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            '\'' => b'\'',
            '"' => b'"',
            '`' => b'`',
            '?' => b'?',
            'x' | 'X' => return self.code(2, 16, bytes, out),
            'u' => return self.code(4, 16, false, out),
            'U' => return self.code(8, 16, false, out),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, bytes, out);
            }
            _ => return Err(format!("token recognition error at: '\\{c}'")),
        };
        out.push(plain);
        Ok(())
    }

    fn code(&mut self, digits: usize, radix: u32, bytes: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let text: String = (0..digits).map(|index| self.peek(index)).collect();
        let code = u32::from_str_radix(&text, radix).map_err(|_| format!("invalid escape sequence: {text:?}"))?;
        self.at += digits;
        if bytes {
            out.push(u8::try_from(code).map_err(|_| "invalid escape sequence")?);
        } else {
            let c = char::from_u32(code).ok_or("invalid unicode code point")?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
