package terminal

// escapes finds what a person types to this end: ~. ~d ~? after a new line, as
// in OpenSSH. ~~ is one ~.
type escapes struct {
	on    bool
	mid   bool // the line has begun: no escape now
	tilde bool // ~ has come, and is held back
}

// take returns what goes to the program, and a command; what is typed after a
// command in the same read is for nobody when it leaves.
func (e *escapes) take(p []byte) (typed []byte, command byte) {
	if !e.on {
		return p, 0
	}
	typed = make([]byte, 0, len(p)+1)
	for _, b := range p {
		switch {
		case e.tilde:
			e.tilde = false
			switch b {
			case '.', 'd':
				return typed, b
			case '?':
				command = b
				continue
			case '~':
				e.mid = true
				typed = append(typed, b)
				continue
			}
			typed = append(typed, '~')
		case b == '~' && !e.mid:
			e.tilde = true
			continue
		}
		e.mid = b != '\r' && b != '\n'
		typed = append(typed, b)
	}
	return typed, command
}
