package files

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
)

// Attached serves SFTP as a session that outlives its connections. It is the
// answering end itself: over the socket control, the helper passes it each
// connection for the session, and is not in between.
func Attached(control *os.File) error {
	// A client waits for each answer. That a request goes through several
	// goroutines costs little on one CPU, and to wake another CPU for each of them
	// more than all the rest.
	runtime.GOMAXPROCS(1)
	c, err := net.FileConn(control)
	if err != nil {
		return err
	}
	defer c.Close()
	conn, a, err := receive(c.(*net.UnixConn))
	if err != nil {
		return err
	}
	pipe := resume.New(resume.Config{Keep: time.Duration(a.Keep) * time.Second})
	go func() {
		for err == nil {
			go func() { _ = pipe.Serve(conn, a.Received) }() // the client comes back, or it does not
			conn, a, err = receive(c.(*net.UnixConn))
		}
	}()
	return serveSession(pipe)
}

// receive returns the next connection and what came with it.
func receive(control *net.UnixConn) (net.Conn, protocol.Attach, error) {
	var a protocol.Attach
	message, rights := make([]byte, protocol.MaxFrame), make([]byte, unix.CmsgSpace(4))
	n, r, _, _, err := control.ReadMsgUnix(message, rights)
	if err != nil {
		return nil, a, err
	}
	controls, err := unix.ParseSocketControlMessage(rights[:r])
	if err != nil || len(controls) != 1 {
		return nil, a, errors.Join(err, errors.New("no connection came from the helper"))
	}
	fds, err := unix.ParseUnixRights(&controls[0])
	if err != nil {
		return nil, a, err
	}
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer f.Close() // what follows is a copy
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, a, err
	}
	return conn, a, protocol.Unmarshal(message[:n], &a)
}

// serveSession serves what is asked for inside the frames of a session.
func serveSession(pipe *resume.Conn) error {
	defer pipe.Close()
	frames := protocol.NewFrameReader(bufio.NewReaderSize(pipe, 4<<10)) // the most of a large frame is read past it
	exit := protocol.SessionExit{Version: protocol.Version}
	err := serveSFTP(&input{frames: frames}, output{pipe})
	if err != nil {
		exit.Code, exit.Message = 1, protocol.Cut("Files could not be served: "+err.Error()+".")
	}
	if protocol.WriteDocument(pipe, protocol.FrameExit, exit) != nil || pipe.CloseWrite() != nil {
		return nil // nobody is there any more
	}
	select {
	case <-pipe.Delivered():
	case <-pipe.Done():
	}
	return err
}

// input is the standard input in the frames of a session.
type input struct {
	frames *protocol.FrameReader
	rest   []byte // of a frame
}

func (i *input) Read(p []byte) (int, error) {
	for len(i.rest) == 0 {
		kind, payload, err := i.frames.Next()
		switch {
		case err != nil:
			return 0, err
		case kind == protocol.FrameEOF:
			return 0, io.EOF
		case kind == protocol.FrameStdin:
			i.rest = payload
		}
	}
	n := copy(p, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}

// output is the standard output in the frames of a session.
type output struct{ *resume.Conn }

func (o output) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+protocol.MaxFrame)]
		if err := protocol.WriteFrame(o.Conn, protocol.FrameStdout, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}
