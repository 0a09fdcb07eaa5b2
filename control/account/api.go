package account

import (
	"context"
	"net/http"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/web"
)

type loginInput struct {
	Body struct {
		Email    string `json:"email" maxLength:"254"`
		Password string `json:"password" maxLength:"1024"`
	}
}

type loginOutput struct {
	Token string `json:"token" doc:"Bearer for the API, valid for 14 days; shown once"`
	User  User   `json:"user"`
}

type userInput struct {
	Body struct {
		Email    string `json:"email" maxLength:"254"`
		Name     string `json:"name,omitempty" maxLength:"100"`
		Password string `json:"password" maxLength:"1024"`
		Admin    bool   `json:"admin,omitempty" doc:"Platform admin"`
	}
}

type disableInput struct {
	User string `path:"user"`
	Body struct {
		Disabled bool `json:"disabled"`
	}
}

type passwordInput struct {
	Body struct {
		Old string `json:"old" maxLength:"1024"`
		New string `json:"new" maxLength:"1024"`
	}
}

type tokenInput struct {
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"100"`
		Days int    `json:"days,omitempty" minimum:"0" maximum:"3650" doc:"Days until it expires; 0: never"`
	}
}

type tokenOutput struct {
	Token
	Secret string `json:"secret" doc:"Shown once"`
}

type keyInput struct {
	Body struct {
		Name      string `json:"name,omitempty" maxLength:"100" doc:"Empty: the key's comment"`
		PublicKey string `json:"public_key" maxLength:"16384" doc:"A line as in authorized_keys"`
	}
}

type idInput struct {
	ID string `path:"id"`
}

type none struct{}

// Routes adds the module's routes.
func (s *Service) Routes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/login", Action: auth.SessionCreate, Summary: "Log in with a password"},
		func(ctx context.Context, c auth.Caller, in *loginInput) (loginOutput, error) {
			secret, u, err := s.Login(ctx, c, in.Body.Email, in.Body.Password)
			return loginOutput{secret, u}, err
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: "/api/v1/login", Action: auth.SessionDelete, Summary: "Log out: end the session that this is asked with"},
		func(ctx context.Context, c auth.Caller, _ *none) (web.None, error) {
			return web.None{}, s.Logout(ctx, c)
		})
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/account", Action: auth.AccountRead, Summary: "Who am I"},
		func(ctx context.Context, c auth.Caller, _ *none) (User, error) { return s.Me(ctx, c) })
	web.Register(api, web.Route{Method: http.MethodPut, Path: "/api/v1/account/password", Action: auth.AccountWrite, Summary: "Change one's password: all other sessions end; API tokens and SSH keys stay"},
		func(ctx context.Context, c auth.Caller, in *passwordInput) (web.None, error) {
			return web.None{}, s.ChangePassword(ctx, c, in.Body.Old, in.Body.New)
		})
	s.tokenRoutes(api)
	s.keyRoutes(api)
	s.userRoutes(api)
}

func (s *Service) tokenRoutes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/account/tokens", Action: auth.AccountRead, Summary: "List one's API tokens"},
		func(ctx context.Context, c auth.Caller, _ *none) (web.List[Token], error) {
			tokens, err := s.Tokens(ctx, c)
			return web.Items(tokens), err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/account/tokens", Action: auth.AccountWrite, Summary: "Make an API token", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *tokenInput) (tokenOutput, error) {
			t, secret, err := s.CreateToken(ctx, c, in.Body.Name, time.Duration(in.Body.Days)*24*time.Hour)
			return tokenOutput{t, secret}, err
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: "/api/v1/account/tokens/{id}", Action: auth.AccountWrite, Summary: "Revoke an API token"},
		func(ctx context.Context, c auth.Caller, in *idInput) (web.None, error) {
			return web.None{}, s.DeleteToken(ctx, c, in.ID)
		})
}

func (s *Service) keyRoutes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/account/keys", Action: auth.AccountRead, Summary: "List one's SSH keys"},
		func(ctx context.Context, c auth.Caller, _ *none) (web.List[Key], error) {
			keys, err := s.Keys(ctx, c)
			return web.Items(keys), err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/account/keys", Action: auth.AccountWrite, Summary: "Register an SSH key", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *keyInput) (Key, error) {
			return s.AddKey(ctx, c, in.Body.Name, in.Body.PublicKey)
		})
	web.Register(api, web.Route{Method: http.MethodDelete, Path: "/api/v1/account/keys/{id}", Action: auth.AccountWrite, Summary: "Remove an SSH key"},
		func(ctx context.Context, c auth.Caller, in *idInput) (web.None, error) {
			return web.None{}, s.DeleteKey(ctx, c, in.ID)
		})
}

func (s *Service) userRoutes(api *web.API) {
	web.Register(api, web.Route{Method: http.MethodGet, Path: "/api/v1/users", Action: auth.UserManage, Summary: "List users"},
		func(ctx context.Context, c auth.Caller, _ *none) (web.List[User], error) {
			users, err := s.Users(ctx, c)
			return web.Items(users), err
		})
	web.Register(api, web.Route{Method: http.MethodPost, Path: "/api/v1/users", Action: auth.UserManage, Summary: "Make a user", Status: http.StatusCreated},
		func(ctx context.Context, c auth.Caller, in *userInput) (User, error) {
			return s.CreateUser(ctx, c, User{Email: in.Body.Email, Name: in.Body.Name, Admin: in.Body.Admin}, in.Body.Password)
		})
	web.Register(api, web.Route{Method: http.MethodPut, Path: "/api/v1/users/{user}/disabled", Action: auth.UserManage, Summary: "Turn a user off or on"},
		func(ctx context.Context, c auth.Caller, in *disableInput) (web.None, error) {
			return web.None{}, s.SetDisabled(ctx, c, in.User, in.Body.Disabled)
		})
}
